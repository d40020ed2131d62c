// Matrix products on the plain cores: any architecture, element type, shape and stride. Sums are kept in f32, each as
// one chain of fused multiply-adds in ascending k, so an output does not depend on the tile size.
//
// PRODUCT STORE, GATE, GATE_GRADIENT or COTANGENTS   DTYPE F32, F16 or BF16   GATE_FUNCTION 0 .. 5
// A_TRANS, B_TRANS    the operand is stored as k x m, n x k
// OUT_F32             with STORE: c holds f32 whatever DTYPE is
// A_VECTOR, B_VECTOR  the operand's base addresses and row strides are multiples of 16 bytes
// C_VECTOR            so are those of c, pre and dz
// BLOCK               edge of the tile of sums:
//
//   BLOCK   threads   sums per thread   static shared memory, f32 / 16 bits
//   32      64        4 x 4             4608 / 9216
//   64      256       4 x 4             17408 / 34816
//   128     256       8 x 8             16896 or 33792 / 33792
//
// Grid: x is ceil(m / BLOCK) * ceil(n / COLUMNS), where COLUMNS is BLOCK / 2 in GATE and GATE_GRADIENT and BLOCK in the
// others; z is the number of independent products.
//
// In GATE and GATE_GRADIENT the left half of a tile holds gate columns and the right half the same up columns. A thread
// has as many of each, in both halves at the same place, so that both pre-activations of an output meet in registers.
#include "gate.cuh"
#include "pack.cuh"
#include "params.cuh"

constexpr bool PAIRED = PRODUCT == GATE || PRODUCT == GATE_GRADIENT;
constexpr int COLUMNS = PAIRED ? BLOCK / 2 : BLOCK;
constexpr int THREADS = BLOCK == 32 ? 64 : 256;
constexpr int OUT = OUT_F32 ? F32 : DTYPE;

// Elements in 16 bytes. A slab is as deep as one such access per thread and operand fills it; or two, for fewer
// barriers, where registers are left for them.
constexpr int VECTOR = 16 / sizeof(Element<DTYPE>::Bits);
constexpr bool DEEP = BLOCK == 128 && DTYPE == F32 && (!PAIRED || (PRODUCT == GATE && !A_TRANS));
constexpr int SHARE = DEEP ? 2 * VECTOR : VECTOR;
constexpr int BLOCK_K = THREADS * SHARE / BLOCK;
// Keeps float4 aligned, and spreads a column of a slab over the banks.
constexpr int PITCH = BLOCK + 4;

// A thread has EDGE x EDGE sums: rows in groups of 4, 32 apart, and half of its columns in each half of the tile. A
// warp is 8 x 4 threads.
constexpr int EDGE = BLOCK == 128 ? 8 : 4;
constexpr int SIDE = EDGE / 2;
constexpr int WARPS_DOWN = BLOCK / (8 * EDGE);

// Neighbouring blocks walk down this many tiles before they go right, and share those rows of A in L2.
constexpr u32 GROUP = 8;

typedef float Slab[BLOCK_K][PITCH];

// A thread's share of one operand, on its way from global to shared memory. With HALVES the slab's right half comes
// from a second matrix: the second half of the threads has it.
template <bool K_INNER, bool WHOLE, bool HALVES>
struct Share {
    static constexpr int WIDTH = WHOLE ? VECTOR : 1;
    static constexpr int PIECES = SHARE / WIDTH;
    static constexpr int TEAM = HALVES ? THREADS / 2 : THREADS;
    static constexpr int SPAN = HALVES ? BLOCK / 2 : BLOCK;
    static constexpr int PER_ROW = (K_INNER ? BLOCK_K : SPAN) / WIDTH;
    // Rows from one piece to the next.
    static constexpr int STEP = TEAM / PER_ROW;

    // The first piece's place in the next slab; how far the matrix reaches from there across the tile.
    const void* next;
    i64 stride;
    int extent;
    Pack<DTYPE, WIDTH> pieces[PIECES];

    static __device__ __forceinline__ int inner() { return threadIdx.x % PER_ROW * WIDTH; }
    static __device__ __forceinline__ int outer() { return threadIdx.x % TEAM / PER_ROW; }

    __device__ __forceinline__ void begin(const Input& left, const Input& right, i64 first, i64 end) {
        const Input& matrix = threadIdx.x < TEAM ? left : right;
        first += K_INNER ? outer() : inner();
        i64 row = K_INNER ? first : outer();
        i64 column = K_INNER ? inner() : first;
        stride = matrix.stride;
        next = element<DTYPE>(matrix.data, row * stride + column);
        extent = static_cast<int>(min(end - first, i64(BLOCK)));
    }

    // Takes the next slab, of which `depth` along k is in the matrix, or with `inside` all for every thread. Zeros
    // outside: both operands have them at the same k, where an infinity in the other one must not become a NaN.
    __device__ __forceinline__ void load(int depth, bool inside) {
        int rows = K_INNER ? extent : depth - outer();
        int columns = K_INNER ? depth - inner() : extent;
        if (inside) rows = BLOCK, columns = WIDTH;
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            pieces[i].load(element<DTYPE>(next, STEP * i * stride), STEP * i < rows ? columns : 0, WHOLE);
        }
        next = element<DTYPE>(next, K_INNER ? BLOCK_K : BLOCK_K * stride);
    }

    __device__ __forceinline__ void store(Slab& slab) const {
        int offset = threadIdx.x < TEAM ? 0 : SPAN;
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            int row = outer() + STEP * i;
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) {
                slab[K_INNER ? inner() + j : row][offset + (K_INNER ? row : inner() + j)] = pieces[i].widened(j);
            }
        }
    }
};

// Consecutive floats of shared memory in one access.
__device__ __forceinline__ void load_shared(float (&to)[4], const float* from) {
    float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

__device__ __forceinline__ void load_shared(float (&to)[2], const float* from) {
    float2 v = *reinterpret_cast<const float2*>(from);
    to[0] = v.x, to[1] = v.y;
}

// sums += the product of two slabs.
__device__ __forceinline__ void multiply(float (&sums)[EDGE][EDGE], const Slab& a, const Slab& b, int row, int column) {
#pragma unroll
    for (int depth = 0; depth < BLOCK_K; ++depth) {
        float x[EDGE / 4][4], w[2][SIDE];
#pragma unroll
        for (int i = 0; i < EDGE / 4; ++i) load_shared(x[i], &a[depth][row + 32 * i]);
#pragma unroll
        for (int j = 0; j < 2; ++j) load_shared(w[j], &b[depth][column + BLOCK / 2 * j]);
#pragma unroll
        for (int i = 0; i < EDGE; ++i) {
#pragma unroll
            for (int j = 0; j < EDGE; ++j) {
                sums[i][j] = fmaf(x[i / 4][i % 4], w[j / SIDE][j % SIDE], sums[i][j]);
            }
        }
    }
}

// What becomes of SIDE sums beside one another, and in a paired product of the SIDE sums `up` that belong to them.
__device__ __forceinline__ void finish(
    const GemmParams& p, float (&gate)[SIDE], float (&up)[SIDE], const float (&bias)[2][SIDE], i64 row, i64 column) {
    i64 count = p.n - column;
    auto at = [&](const Output& matrix) { return element<OUT>(matrix.data, row * matrix.stride + column); };
#if PRODUCT == STORE
    const Output& c = p.c[blockIdx.z];
    if (p.add) {
        float old[SIDE];
        read<OUT>(old, at(c), count, C_VECTOR);
#pragma unroll
        for (int j = 0; j < SIDE; ++j) gate[j] += old[j];
    }
    write<OUT>(at(c), gate, count, C_VECTOR);
#elif PRODUCT == COTANGENTS
    float g[SIDE], u[SIDE], dup[SIDE];
    read<OUT>(g, at(p.pre[0]), count, C_VECTOR);
    read<OUT>(u, at(p.pre[1]), count, C_VECTOR);
    if (p.bias[0] != nullptr) {
        float of_gate[SIDE], of_up[SIDE];
        read<DTYPE>(of_gate, element<DTYPE>(p.bias[0], column), count, false);
        read<DTYPE>(of_up, element<DTYPE>(p.bias[1], column), count, false);
#pragma unroll
        for (int j = 0; j < SIDE; ++j) {
            g[j] += of_gate[j];
            u[j] += of_up[j];
        }
    }
#pragma unroll
    for (int j = 0; j < SIDE; ++j) {
        float dg, du;
        gate_partials(g[j], u[j], p.alpha, p.limit, dg, du);
        dup[j] = gate[j] * du;
        gate[j] *= dg;
    }
    write<OUT>(at(p.c[0]), gate, count, C_VECTOR);
    write<OUT>(at(p.c[1]), dup, count, C_VECTOR);
#else
#pragma unroll
    for (int j = 0; j < SIDE; ++j) {
        gate[j] += bias[0][j];
        up[j] += bias[1][j];
    }
    if (p.pre[0].data != nullptr) {
        write<OUT>(at(p.pre[0]), gate, count, C_VECTOR);
        write<OUT>(at(p.pre[1]), up, count, C_VECTOR);
    }
#if PRODUCT == GATE
#pragma unroll
    for (int j = 0; j < SIDE; ++j) gate[j] = gate_value(gate[j], up[j], p.alpha, p.limit);
    write<OUT>(at(p.c[0]), gate, count, C_VECTOR);
#else
    float dz[SIDE];
    read<DTYPE>(dz, element<DTYPE>(p.dz.data, row * p.dz.stride + column), count, C_VECTOR);
#pragma unroll
    for (int j = 0; j < SIDE; ++j) {
        float dg, du;
        gate_partials(gate[j], up[j], p.alpha, p.limit, dg, du);
        gate[j] = dz[j] * dg;
        up[j] = dz[j] * du;
    }
    write<OUT>(at(p.c[0]), gate, count, C_VECTOR);
    write<OUT>(at(p.c[1]), up, count, C_VECTOR);
#endif
#endif
}

// Blocks of 256 threads on an SM. Two leave 128 registers a thread, which with 8 x 8 sums are enough only where a share
// is of few pieces; compilers for sm_70, those for the latest architectures in one product, and COTANGENTS need a few
// more of them.
constexpr bool TIGHT = __CUDA_ARCH__ < 750 || PRODUCT == COTANGENTS || (__CUDA_ARCH__ >= 1000 && PRODUCT == GATE_GRADIENT && B_TRANS);
constexpr int RESIDENT = BLOCK < 128 || (DTYPE == F32 && A_VECTOR && B_VECTOR && C_VECTOR && !TIGHT) ? 2 : 1;

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT * 256 / THREADS)
    swiglu_kernel(const __grid_constant__ GemmParams p) {
    follow();
    __shared__ alignas(16) Slab a[2], b[2];

    // The tile.
    u32 down = static_cast<u32>((p.m + BLOCK - 1) / BLOCK);
    u32 right = static_cast<u32>((p.n + COLUMNS - 1) / COLUMNS);
    u32 top = blockIdx.x / (GROUP * right) * GROUP;
    u32 rest = blockIdx.x - top * right;
    u32 height = min(GROUP, down - top);
    i64 first_row = static_cast<i64>(top + rest % height) * BLOCK;
    i64 first_column = static_cast<i64>(rest / height) * COLUMNS;

    // This thread's first sum in it. Of a warp's 8 threads that load together no two read different words of one bank.
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row = (warp % WARPS_DOWN) * 8 * EDGE + (lane >> 1 & 7) * 4;
    int column = (warp / WARPS_DOWN * 4 + (lane >> 4) * 2 + (lane & 1)) * SIDE;

    float sums[EDGE][EDGE] = {};
    Share<!A_TRANS, A_VECTOR, false> share_a;
    Share<B_TRANS, B_VECTOR, PAIRED> share_b;
    bool interior = first_row + BLOCK <= p.m && first_column + COLUMNS <= p.n;
    u32 segment = 0;
    i64 left = 0;
    // Takes the next slab into registers; false where there is none.
    auto load = [&]() -> bool {
        if (left <= 0) {
            if (p.k == 0 || segment == p.segments) return false;
            u32 i = blockIdx.z + segment++;
            share_a.begin(p.a[i], p.a[i], first_row, p.m);
            share_b.begin(p.b[i], p.b[1], first_column, p.n);
            left = p.k;
        }
        // An interior tile's slabs, all but the last, go without a test for each piece.
        if (interior && left >= BLOCK_K) {
            share_a.load(BLOCK_K, true);
            share_b.load(BLOCK_K, true);
        } else {
            int depth = static_cast<int>(min(left, i64(BLOCK_K)));
            share_a.load(depth, false);
            share_b.load(depth, false);
        }
        left -= BLOCK_K;
        return true;
    };
    int now = 0;
    bool more = load();
    if (more) {
        share_a.store(a[now]);
        share_b.store(b[now]);
    }
    __syncthreads();
    // The next slab is on its way while this one is multiplied. One barrier is enough: a slab's buffer is written again
    // only after the barrier that ends its multiplication.
    while (more) {
        more = load();
        multiply(sums, a[now], b[now], row, column);
        now ^= 1;
        if (more) {
            share_a.store(a[now]);
            share_b.store(b[now]);
        }
        __syncthreads();
    }

    float bias[2][SIDE] = {};
    first_column += column;
    if (PAIRED) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (p.bias[half] == nullptr) continue;
            read<DTYPE>(bias[half], element<DTYPE>(p.bias[half], first_column), p.n - first_column, false);
        }
    }
#pragma unroll
    for (int i = 0; i < EDGE; ++i) {
        i64 y = first_row + row + i / 4 * 32 + i % 4;
        if (y >= p.m) continue;
        float gate[SIDE], up[SIDE];
#pragma unroll
        for (int j = 0; j < SIDE; ++j) {
            gate[j] = sums[i][j];
            up[j] = sums[i][SIDE + j];
        }
        finish(p, gate, up, bias, y, first_column);
        if (!PAIRED) finish(p, up, gate, bias, y, first_column + BLOCK / 2);
    }
}

// Strict f32 products with too few tiles to occupy a GPU: what is summed over is cut as well, among the warps of a block
// and among the blocks of a cluster. From compute capability 9.0 on; any shape and stride.
//
// PRODUCT STORE, GATE or GATE_GRADIENT   GATE_FUNCTION 0 .. 5
// A_TRANS, B_TRANS    the operand is stored as k x m, n x k
// A_VECTOR, B_VECTOR  the operand's base addresses and row strides are multiples of 16 bytes
// C_VECTOR            so are those of c, pre and dz
// SLICES               blocks of a cluster, 1, 2 or 4, which share a tile
//
// Grid: x is SLICES * ceil(m / 64) * ceil(n / COLUMNS), where COLUMNS is 64 in STORE and 32 in the others; z is the
// number of independent products. 256 threads; dynamic shared memory: see SHARED_FLOATS.
//
// A tile is 64 x 64 sums. In GATE and GATE_GRADIENT its left half holds gate columns and its right half the same up
// columns. Four groups of two warps hold a whole tile each, 8 x 8 sums a thread, and take consecutive parts of k: each has a ring of slabs of its
// own, so that groups never wait for one another. At the end partial sums are added in the order of k: those of a block
// through its shared memory, then those of a cluster through that of the block which writes them. The order depends on the
// shape and on SLICES, which follows from the shape and the device.
#include "gate.cuh"
#include "pack.cuh"
#include "params.cuh"

constexpr bool PAIRED = PRODUCT != STORE;
constexpr int EDGE = 64;
constexpr int COLUMNS = PAIRED ? EDGE / 2 : EDGE;
constexpr int GROUPS = 4;
constexpr int TEAM = 64;
constexpr int THREADS = GROUPS * TEAM;
// k is cut into units, of which a slab holds two. Three slabs on their way are 3000 clocks of multiplication.
constexpr int UNIT = 4;
constexpr int DEPTH = 2 * UNIT;
constexpr int STAGES = 4;

// A slab of one operand: rows of DEPTH where k is contiguous in memory, else DEPTH rows. 12 floats from row to row put 8
// rows at the same k into all banks.
__device__ constexpr int pitch(bool k_inner) { return k_inner ? DEPTH + 4 : EDGE; }
__device__ constexpr int slab(bool k_inner) { return (k_inner ? EDGE : DEPTH) * pitch(k_inner); }
constexpr int SLAB_A = slab(!A_TRANS);
constexpr int SLABS = SLAB_A + slab(B_TRANS);
constexpr int RING = STAGES * SLABS;

// Partial sums of a block's groups take the rings' place.
constexpr int PARTIALS = GROUPS * EDGE * EDGE;
constexpr int WORK = GROUPS * RING > PARTIALS ? GROUPS * RING : PARTIALS;
// What a block gets from its cluster: 16 bytes for each thread, four times.
constexpr int RECEIVED = SLICES > 1 ? 4 * 4 * THREADS : 0;
constexpr int SHARED_FLOATS = WORK + RECEIVED;
static_assert(SHARED_FLOATS * 4 <= 114 * 1024, "src/gemm.rs has the same formula");

__device__ __forceinline__ u32 shared_address(const void* at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }

// Copies the first `count` of `width` floats, and zeros after them.
template <int width>
__device__ __forceinline__ void copy(u32 to, const float* from, int count) {
    if (width == 4) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(4 * count) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(4 * count) : "memory");
    }
}

// A thread's share of one operand's copies. With HALVES the tile's second half comes from a second matrix; without, the
// second matrix is the second segment of k.
template <bool K_INNER, bool WHOLE, bool HALVES>
struct Share {
    static constexpr int WIDTH = WHOLE ? 4 : 1;
    static constexpr int SPAN = HALVES ? EDGE / 2 : EDGE;
    static constexpr int PER_ROW = (K_INNER ? DEPTH : EDGE) / WIDTH;
    static constexpr int STEP = TEAM / PER_ROW;
    static constexpr int PIECES = EDGE * DEPTH / WIDTH / TEAM;

    // The tile's first element across k, of each matrix.
    const float* base[2];
    i64 stride[2];
    // Elements across k from there to the matrix's end.
    int extent;
    // Where the pieces of the next slab are, if that is inside of the matrix as the last one was; in which segment.
    const float* next[WHOLE ? PIECES : 1];
    int segment;

    __device__ __forceinline__ void begin(const Input& left, const Input& right, i64 first, i64 end) {
        base[0] = static_cast<const float*>(left.data) + first * (K_INNER ? left.stride : 1);
        base[1] = static_cast<const float*>(right.data) + first * (K_INNER ? right.stride : 1);
        stride[0] = left.stride;
        stride[1] = right.stride;
        extent = static_cast<int>(min(end - first, i64(SPAN)));
        segment = -1;
    }

    static __device__ __forceinline__ int outer(int thread, int i) { return thread / PER_ROW + STEP * i; }
    static __device__ __forceinline__ int inner(int thread) { return thread % PER_ROW * WIDTH; }
    static __device__ __forceinline__ int line(int thread, int i) { return K_INNER ? outer(thread, i) : inner(thread); }
    static __device__ __forceinline__ int depth(int thread, int i) { return K_INNER ? inner(thread) : outer(thread, i); }

    // Of piece i at k = `at` of its matrix.
    __device__ __forceinline__ const float* source(int thread, int i, i64 at, bool second) const {
        int across = line(thread, i) % SPAN;
        bool other = HALVES ? line(thread, i) >= SPAN : second;
        i64 step = other ? stride[1] : stride[0];
        return (other ? base[1] : base[0]) + (K_INNER ? across * step + at : at * step + across);
    }

    static __device__ __forceinline__ u32 target(u32 slab, int thread, int i) {
        return slab + 4 * (outer(thread, i) * pitch(K_INNER) + inner(thread));
    }

    // Enqueues copies of the units from `unit` on, before `last`, of which a segment of `k` has `per_segment`.
    __device__ __forceinline__ void load(u32 slab, int thread, i64 unit, i64 last, i64 per_segment, i64 k) {
        bool second = unit >= per_segment;
        i64 start = (second ? unit - per_segment : unit) * UNIT;
        if (WHOLE && extent == SPAN && unit + 2 <= last && start + DEPTH <= k) {
            // Inside: no piece needs a test. A slab that is not is the last of its segment.
            bool other = HALVES ? line(thread, 0) >= SPAN : second;
            i64 advance = K_INNER ? DEPTH : DEPTH * (other ? stride[1] : stride[0]);
            bool again = segment == static_cast<int>(second);
            segment = second;
#pragma unroll
            for (int i = 0; i < PIECES; ++i) {
                next[i] = again ? next[i] + advance : source(thread, i, start + depth(thread, i), second);
                copy<WIDTH>(target(slab, thread, i), next[i], WIDTH);
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            i64 own = unit + depth(thread, i) / UNIT;
            bool beyond = own >= per_segment && own < last;
            i64 at = (beyond ? own - per_segment : own) * UNIT + depth(thread, i) % UNIT;
            i64 inside = own < last ? k - at : 0;
            int room = extent - line(thread, i) % SPAN;
            i64 count = K_INNER ? (room > 0 ? inside : 0) : (inside > 0 ? room : 0);
            int width = static_cast<int>(max(min(count, i64(WIDTH)), i64(0)));
            copy<WIDTH>(target(slab, thread, i), width > 0 ? source(thread, i, at, beyond) : base[0], width);
        }
    }
};

// A thread's 8 elements across k at each of a unit's, from a slab. LANES lanes side by side share `span` of them.
template <bool K_INNER, int LANES>
__device__ __forceinline__ void fragment(float (&to)[UNIT][8], const float* from, int first, int lane, int unit) {
    if (K_INNER) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float* at = from + (first + lane + LANES * i) * pitch(true) + unit * UNIT;
            float4 v = *reinterpret_cast<const float4*>(at);
            to[0][i] = v.x, to[1][i] = v.y, to[2][i] = v.z, to[3][i] = v.w;
        }
    } else {
#pragma unroll
        for (int k = 0; k < UNIT; ++k) {
#pragma unroll
            for (int i = 0; i < 8; i += 4) {
                const float* at = from + (unit * UNIT + k) * pitch(false) + first + 4 * lane + LANES * i;
                float4 v = *reinterpret_cast<const float4*>(at);
                to[k][i] = v.x, to[k][i + 1] = v.y, to[k][i + 2] = v.z, to[k][i + 3] = v.w;
            }
        }
    }
}

// Where a thread's i-th of 8 elements across k is in the tile.
template <bool K_INNER, int LANES>
__device__ __forceinline__ int place(int lane, int i) {
    return K_INNER ? lane + LANES * i : 4 * lane + LANES * (i & 4) + (i & 3);
}

// What becomes of `count` sums beside one another, and of those half a tile to the right: in paired products, of up.
template <int count>
__device__ __forceinline__ void finish(const GemmParams& p, float (&left)[count], float (&right)[count], i64 row, i64 column) {
    auto at = [&](const Output& matrix, i64 x) { return element<F32>(matrix.data, row * matrix.stride + x); };
    i64 room = p.n - column;
#if PRODUCT == STORE
    const Output& c = p.c[blockIdx.z];
    if (p.add) {
        float old[count];
        read<F32>(old, at(c, column), room, C_VECTOR);
#pragma unroll
        for (int i = 0; i < count; ++i) left[i] += old[i];
        read<F32>(old, at(c, column + EDGE / 2), room - EDGE / 2, C_VECTOR);
#pragma unroll
        for (int i = 0; i < count; ++i) right[i] += old[i];
    }
    write<F32>(at(c, column), left, room, C_VECTOR);
    write<F32>(at(c, column + EDGE / 2), right, room - EDGE / 2, C_VECTOR);
#else
    float bias[2][count] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (p.bias[half] != nullptr) read<F32>(bias[half], element<F32>(p.bias[half], column), room, false);
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
        left[i] += bias[0][i];
        right[i] += bias[1][i];
    }
    if (p.pre[0].data != nullptr) {
        write<F32>(at(p.pre[0], column), left, room, C_VECTOR);
        write<F32>(at(p.pre[1], column), right, room, C_VECTOR);
    }
#if PRODUCT == GATE
#pragma unroll
    for (int i = 0; i < count; ++i) left[i] = gate_value(left[i], right[i], p.alpha, p.limit);
    write<F32>(at(p.c[0], column), left, room, C_VECTOR);
#else
    float dz[count];
    read<F32>(dz, element<F32>(p.dz.data, row * p.dz.stride + column), room, C_VECTOR);
#pragma unroll
    for (int i = 0; i < count; ++i) {
        float dg, du;
        gate_partials(left[i], right[i], p.alpha, p.limit, dg, du);
        left[i] = dz[i] * dg;
        right[i] = dz[i] * du;
    }
    write<F32>(at(p.c[0], column), left, room, C_VECTOR);
    write<F32>(at(p.c[1], column), right, room, C_VECTOR);
#endif
#endif
}

// Two blocks of a multiprocessor where fragments are small and pieces few, one where whole units are in registers.
constexpr int RESIDENT = A_TRANS && !B_TRANS && A_VECTOR && B_VECTOR ? 2 : 1;

extern "C" __global__ void __cluster_dims__(SLICES, 1, 1) __launch_bounds__(THREADS, RESIDENT)
    swiglu_kernel(const __grid_constant__ GemmParams p) {
    follow();
    extern __shared__ __align__(16) float shared[];
    // Blocks of a cluster have to run before their memory is written to: see below.
    if (SLICES > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;");

    u32 rank = blockIdx.x % SLICES, tile = blockIdx.x / SLICES;
    u32 down = static_cast<u32>((p.m + EDGE - 1) / EDGE);
    i64 first_row = static_cast<i64>(tile % down) * EDGE, first_column = static_cast<i64>(tile / down) * COLUMNS;
    int group = threadIdx.x / TEAM, thread = threadIdx.x % TEAM, lane = thread % 32;
    // A warp's lanes are 4 x 8, each group's warps above one another.
    int top = thread / 32 * 32, down_lane = lane / 8, right_lane = lane % 8;

    // This group's units.
    i64 per_segment = (p.k + UNIT - 1) / UNIT;
    i64 units = per_segment * p.segments;
    u32 part = rank * GROUPS + group;
    i64 unit = units * part / (SLICES * GROUPS), last = units * (part + 1) / (SLICES * GROUPS);

    Share<!A_TRANS, A_VECTOR, false> share_a;
    Share<B_TRANS, B_VECTOR, PAIRED> share_b;
    share_a.begin(p.a[blockIdx.z], p.a[1], first_row, p.m);
    share_b.begin(p.b[blockIdx.z], p.b[1], first_column, p.n);
    const float* ring = shared + group * RING;
    u32 ring_address = shared_address(ring);
    int slabs = static_cast<int>((last - unit + 1) / 2);
    auto load = [&](int index) {
        if (index < slabs) {
            u32 to = ring_address + 4 * (index % STAGES) * SLABS;
            share_a.load(to, thread, unit + 2 * index, last, per_segment, p.k);
            share_b.load(to + 4 * SLAB_A, thread, unit + 2 * index, last, per_segment, p.k);
        }
        // Also an empty group counts.
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    float sums[8][8] = {};
#pragma unroll
    for (int index = 0; index < STAGES - 1; ++index) load(index);
#pragma unroll 1
    for (int index = 0; index < slabs; ++index) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        // The whole group's part of the slab is there, and nobody reads the one before it any more.
        asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(TEAM) : "memory");
        load(index + STAGES - 1);
        const float* a = ring + index % STAGES * SLABS;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // Another group's, or none's.
            if (unit + 2 * index + half >= last) break;
            float x[UNIT][8], w[UNIT][8];
            fragment<!A_TRANS, 4>(x, a, top, down_lane, half);
            fragment<B_TRANS, 8>(w, a + SLAB_A, 0, right_lane, half);
#pragma unroll
            for (int k = 0; k < UNIT; ++k) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
#pragma unroll
                    for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(x[k][i], w[k][j], sums[i][j]);
                }
            }
        }
    }

    // Equal threads of all groups have the same sums' parts. Group g adds those of rows 2g and 2g + 1.
    __syncthreads();
    float4* partials = reinterpret_cast<float4*>(shared);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float* s = &sums[i][4 * half];
            partials[((group * 8 + i) * 2 + half) * TEAM + thread] = {s[0], s[1], s[2], s[3]};
        }
    }
    __syncthreads();
    float own[2][8];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float4 sum = partials[((2 * group + i) * 2 + half) * TEAM + thread];
#pragma unroll
            for (int other = 1; other < GROUPS; ++other) {
                float4 v = partials[((other * 8 + 2 * group + i) * 2 + half) * TEAM + thread];
                sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
            }
            own[i][4 * half] = sum.x, own[i][4 * half + 1] = sum.y;
            own[i][4 * half + 2] = sum.z, own[i][4 * half + 3] = sum.w;
        }
    }

    // Four quarters of those: two rows, of which each has two columns in both halves of the tile, and then the next two.
    // Each block of a cluster finishes as many of them, of the whole cluster's sums.
    constexpr int SHARES = 4 / SLICES;
    float4* received = reinterpret_cast<float4*>(shared + WORK);
    if (SLICES > 1) {
        asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#pragma unroll
        for (int quarter = 0; quarter < 4; ++quarter) {
            const float* s = &own[quarter / 2][quarter % 2 * 2];
            u32 here = shared_address(received + (rank * SHARES + quarter % SHARES) * THREADS + threadIdx.x), there;
            asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(quarter / SHARES));
            asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(there), "f"(s[0]), "f"(s[1]),
                         "f"(s[4]), "f"(s[5])
                         : "memory");
        }
        asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
#pragma unroll
    for (int index = 0; index < SHARES; ++index) {
        float left[2], right[2];
        int quarter = SLICES > 1 ? rank * SHARES + index : index;
        if (SLICES > 1) {
            float4 sum = received[index * THREADS + threadIdx.x];
#pragma unroll
            for (int other = 1; other < SLICES; ++other) {
                float4 v = received[(other * SHARES + index) * THREADS + threadIdx.x];
                sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
            }
            left[0] = sum.x, left[1] = sum.y, right[0] = sum.z, right[1] = sum.w;
        } else {
            const float* s = &own[index / 2][index % 2 * 2];
            left[0] = s[0], left[1] = s[1], right[0] = s[4], right[1] = s[5];
        }
        i64 row = first_row + top + place<!A_TRANS, 4>(down_lane, 2 * group + quarter / 2);
        if (row >= p.m) continue;
        i64 column = first_column + place<B_TRANS, 8>(right_lane, quarter % 2 * 2);
        if (B_TRANS) {
            // Neighbours in registers are 8 columns apart.
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float l[1] = {left[i]}, r[1] = {right[i]};
                finish<1>(p, l, r, row, column + 8 * i);
            }
        } else {
            finish<2>(p, left, right, row, column);
        }
    }
}

// Strict f32 products that are too small to be split first: tensor cores multiply, and what is summed over is cut as
// well, among the warps of a block and among the blocks of a cluster. From compute capability 9.0 on; any shape and
// stride.
//
// PRODUCT STORE, GATE, GATE_GRADIENT or COTANGENTS   GATE_FUNCTION 0 .. 5
// A_TRANS, B_TRANS    the operand is stored as k x m, n x k
// A_VECTOR, B_VECTOR  the operand's base addresses and row strides are multiples of 16 bytes
// C_VECTOR            so are those of c, pre and dz
// GROUPS              parts of k in a block, a warp each: 2, 4 or 8
// SLICES              blocks of a cluster, 1, 2 or 4, which share a tile
//
// Grid: x is SLICES * ceil(m / 32) * ceil(n / COLUMNS), where COLUMNS is 64 in STORE and 32 in the others; z is the
// number of independent products. 32 * GROUPS threads; dynamic shared memory: see SHARED_FLOATS.
//
// A tile is 32 x 64 sums. In GATE and GATE_GRADIENT its left half holds gate columns and its right half the same up
// columns. Each warp holds a whole tile and takes a part of k: it has a ring of slabs of its own, so that warps never
// wait for one another. At the end partial sums are added in the order of k: those of a block through its shared
// memory, then those of a cluster through that of the block which writes them. The order depends on the shape and on
// GROUPS and SLICES, which follow from the shape and the device.
//
// An element times 2^16 is the sum of three of bf16, exactly: a = a0 + a1 + a2. The scale keeps the parts of small
// elements from underflow: bits of the least subnormal are then those of bf16's. Of the nine products of parts the six
// largest are taken, the small ones first. Tensor cores cut off what they add, so that each slab of 16 has fresh sums,
// which are added to the warp's in f32, to nearest. With M = |a| . |b| and u = 2^-24, and as sm90_split.cu counts: the
// products left out are less than 1.001 u, the one step of the large products errs by 10.5 u of the slab's M,
// the five of the small ones by 2^-8 of that each. Additions are k / 16 u, less for more parts, and at most 10 u for
// the parts themselves. Together less than (22 + k / 16) u M, where one chain of multiply-adds has k u M; for smaller k
// there are fewer additions and shorter steps, so that it is always less than 2 (k + 2) u M, the bound for any product
// on tensor cores.
//
// Where a scaled sum is not finite, which a factor above 2^111 or a sum above 2^95 can bring about, it is computed once
// more by a chain of multiply-adds: what comes of infinities, NaNs and overflow is what those make of it. That takes longer: 170 us for 8 where all of 128, 784, 512 is NaN.
//
// Measured on an H100 against one chain of fmaf in f32, relative errors in the Frobenius norm at k = 784, 4096, 14336:
// 0.22, 0.19, 0.18 of the chain's with two parts and 0.17, 0.10, 0.07 with 16 for normal factors; 0.18, 0.14, 0.13 and
// 0.15, 0.08, 0.04 for positive ones; 0.72, 0.63, 0.60 and 0.63, 0.36, 0.27 for factors log-uniform in 2^-40 .. 2^40.
// The worst element of positive ones was off by 5, 9 and 17 u M with two parts (the chain by 30, 69, 132), on average
// by -0.7 u M.
//
// Forward of 128, 784, 512 in 8.4 us, of which 2.6 are left without the loop over slabs (19 us by multiply-adds on
// plain cores). The loop's 96 mma for each slab take 12 clocks each, beside seven other instructions of two warps:
// alone they take 7 where operands are shared, and 10 where they are not. Waiting for copies costs 0.6 us of it.
#include "gate.cuh"
#include "pack.cuh"
#include "params.cuh"
#include "sm90_ptx.cuh"

constexpr bool PAIRED = PRODUCT == GATE || PRODUCT == GATE_GRADIENT;
constexpr int ROWS = 32;
constexpr int EDGE = 64;
constexpr int COLUMNS = PAIRED ? EDGE / 2 : EDGE;
constexpr int LANES = 32;
constexpr int THREADS = GROUPS * LANES;
// Of k in a slab: one mma.
constexpr int DEPTH = 16;
// 96 KiB on their way to a multiprocessor while 48 are multiplied; three stages are 2 % slower.
constexpr int STAGES = 4;
// From a piece's left columns to its right ones.
constexpr int APART = PAIRED ? 0 : EDGE / 2;
constexpr float SCALE = 65536.0f;

// A slab of both operands: of each, rows of DEPTH floats where k is contiguous in memory, else DEPTH rows.
constexpr int SLAB_A = ROWS * DEPTH;
constexpr int SLABS = SLAB_A + EDGE * DEPTH;
constexpr int RING = STAGES * SLABS;
// Partial sums of a block's warps take the rings' place.
constexpr int PARTIAL = ROWS * EDGE;
constexpr int WORK = GROUPS * RING;
static_assert(PARTIAL <= RING, "partial sums take the rings' place");

// A tile's pieces are four columns of a row, and those half a tile to the right. What a block gets from each other one
// of its cluster: 32 bytes for each of the pieces that it finishes.
constexpr int PIECES = ROWS * EDGE / 8;
constexpr int OWN = PIECES / SLICES;
constexpr int RECEIVED = (SLICES - 1) * OWN * 8;
// Besides, a barrier.
constexpr int SHARED_FLOATS = WORK + (SLICES > 1 ? RECEIVED + 4 : 0);
static_assert(SHARED_FLOATS * 4 <= 227 * 1024, "src/gemm.rs has the same formula");

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

// One operand's part of slabs: EXTENT rows or columns of a tile. With HALVES the second half of them comes from a
// second matrix; without, the second matrix is the second segment of k.
//
// A lane of a warp reads four floats at once: k = 4t .. 4t + 3 of one row, or rows 4g .. 4g + 3 at one k, where t =
// lane % 4 and g = lane / 4. For eight lanes to meet all banks, row 4g + q of 32 is at 8q + g in the former case, and
// in the latter chunk c of the row at k is at c ^ 2 (k / 4 % 4).
template <bool K_INNER, int EXTENT, bool WHOLE, bool HALVES>
struct Operand {
    static constexpr int WIDTH = WHOLE ? 4 : 1;
    static constexpr int SPAN = HALVES ? EXTENT / 2 : EXTENT;
    // Copies of a row of the slab, and of a lane; rows from a lane's one copy to its next.
    static constexpr int PER_ROW = (K_INNER ? DEPTH : EXTENT) / WIDTH;
    static constexpr int COPIES = EXTENT * DEPTH / WIDTH / LANES;
    static constexpr int STEP = LANES / PER_ROW;

    // The tile's first element across k, of each matrix.
    const float* base[2];
    i64 stride[2];
    // Elements across k from there to the matrix's end.
    int extent;
    // A lane's first copy of the next slab, from the first matrix and the second; the distance to the next row.
    const float* own[2];
    i64 step[2];
    // Where it goes in a slab.
    int to;

    // The next slab begins at k = `at` of a segment.
    __device__ __forceinline__ void begin(const Input& left, const Input& right, i64 first, i64 end, int lane, i64 at,
                                          bool second) {
        base[0] = static_cast<const float*>(left.data) + first * (K_INNER ? left.stride : 1);
        base[1] = static_cast<const float*>(right.data) + first * (K_INNER ? right.stride : 1);
        stride[0] = left.stride;
        stride[1] = right.stride;
        extent = static_cast<int>(min(end - first, i64(SPAN)));
        if (!WHOLE) return;
        int row = across(lane, 0), k = depth(lane, 0);
        // Where k is not contiguous, all copies of a lane are of the same columns.
        bool beside = HALVES ? !K_INNER && row >= SPAN : second;
        own[0] = source(row % SPAN, at + k, beside);
        step[0] = beside ? stride[1] : stride[0];
        own[1] = source(row % SPAN, HALVES ? at + k : k, true);
        step[1] = stride[1];
        to = offset(row, k);
        // Else all of it is computed again for each slab.
        asm volatile("" : "+l"(own[0]), "+l"(own[1]), "+l"(step[0]), "+l"(step[1]), "+r"(to));
    }

    // The next slab is the first of the second segment.
    __device__ __forceinline__ void enter_second() {
        if (!WHOLE || HALVES) return;
        own[0] = own[1];
        step[0] = step[1];
    }

    // Where a lane's i-th copy begins.
    static __device__ __forceinline__ int across(int lane, int i) {
        return K_INNER ? lane / PER_ROW + STEP * i : (LANES * i + lane) % PER_ROW * WIDTH;
    }
    static __device__ __forceinline__ int depth(int lane, int i) {
        return K_INNER ? lane % PER_ROW * WIDTH : (LANES * i + lane) / PER_ROW;
    }

    __device__ __forceinline__ const float* source(int row, i64 k, bool other) const {
        i64 apart = other ? stride[1] : stride[0];
        return (other ? base[1] : base[0]) + (K_INNER ? row * apart + k : k * apart + row);
    }

    // Where the float at `k` of row `row` is in a slab.
    static __device__ __forceinline__ int offset(int row, int k) {
        return K_INNER ? ((row & ~31) + ((row & 3) << 3) + (row >> 2 & 7)) * DEPTH + k
                       : k * EXTENT + (row ^ (k >> 2 & 3) << 3);
    }

    // offset(across(lane, i), depth(lane, i))
    __device__ __forceinline__ int target(int i) const {
        return K_INNER ? to + (STEP * i % 32 / 4 + STEP * i / 32 * 32) * DEPTH
                       : (to ^ STEP * i / 4 % 4 << 3) + STEP * i * EXTENT;
    }

    // Enqueues copies of the next slab, which begins at k = `at` of `end`.
    __device__ __forceinline__ void load(u32 slab, int lane, i64 at, i64 end, bool second) {
        bool inside = WHOLE && extent == SPAN && at + DEPTH <= end;
        if (inside) {
            const float* from = own[0];
#pragma unroll
            for (int i = 0; i < COPIES; ++i) {
                constexpr bool BOTH = HALVES && K_INNER;
                if (BOTH && STEP * i == SPAN) from = own[1];
                copy<WIDTH>(slab + 4 * target(i), from, WIDTH);
                from += STEP * (BOTH && STEP * i >= SPAN ? step[1] : step[0]);
            }
        }
        if (WHOLE) {
            own[0] += K_INNER ? DEPTH : DEPTH * step[0];
            if (HALVES) own[1] += K_INNER ? DEPTH : 0;
        }
        if (inside) return;
#pragma unroll 1
        for (int i = 0; i < COPIES; ++i) {
            int row = across(lane, i), k = depth(lane, i);
            bool other = HALVES ? row >= SPAN : second;
            i64 rest = end - at - k;
            i64 room = extent - row % SPAN;
            i64 count = K_INNER ? (room > 0 ? rest : 0) : (rest > 0 ? room : 0);
            int width = static_cast<int>(max(min(count, i64(WIDTH)), i64(0)));
            const float* from = width > 0 ? source(row % SPAN, at + k, other) : base[0];
            copy<WIDTH>(slab + 4 * offset(row, k), from, width);
        }
    }

    // Rows first + 4g + q at k = 4t + i, to to[q][i].
    static __device__ __forceinline__ void read(float (&to)[4][4], const float* slab, int first, int lane) {
        int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int at = K_INNER ? offset(first + 4 * g + i, 4 * t) : offset(first + 4 * g, 4 * t + i);
            float4 v = *reinterpret_cast<const float4*>(slab + at);
            if (K_INNER) {
                to[i][0] = v.x, to[i][1] = v.y, to[i][2] = v.z, to[i][3] = v.w;
            } else {
                to[0][i] = v.x, to[1][i] = v.y, to[2][i] = v.z, to[3][i] = v.w;
            }
        }
    }
};

// 2^16 times two floats, as three pairs of bf16: the sum of the parts, exactly. The scale holds up the rests of small
// ones: bits of the least subnormal are then those of bf16.
__device__ __forceinline__ void split(u32 (&parts)[3], float first, float second) {
    first *= SCALE;
    second *= SCALE;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(parts[part]) : "f"(second), "f"(first));
        first -= __uint_as_float(parts[part] << 16);
        second -= __uint_as_float(parts[part] & 0xffff0000u);
    }
}

// A fragment of two rows, of A, or of one, of B, in parts.
struct FragmentA {
    u32 parts[3][4];

    __device__ __forceinline__ void set(const float (&low)[4], const float (&high)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* v = (i % 2 == 0 ? low : high) + i / 2 * 2;
            u32 words[3];
            split(words, v[0], v[1]);
            parts[0][i] = words[0], parts[1][i] = words[1], parts[2][i] = words[2];
        }
    }
};

struct FragmentB {
    u32 parts[3][2];

    __device__ __forceinline__ void set(const float (&v)[4]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            u32 words[3];
            split(words, v[2 * i], v[2 * i + 1]);
            parts[0][i] = words[0], parts[1][i] = words[1], parts[2][i] = words[2];
        }
    }
};

__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds SCALE^2 a . b over 16 of k.
__device__ __forceinline__ void multiply(float (&sum)[4], const FragmentA& a, const FragmentB& b) {
    float t[4] = {};
    multiply(t, a.parts[1], b.parts[1]);
    multiply(t, a.parts[0], b.parts[2]);
    multiply(t, a.parts[2], b.parts[0]);
    multiply(t, a.parts[0], b.parts[1]);
    multiply(t, a.parts[1], b.parts[0]);
    multiply(t, a.parts[0], b.parts[0]);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += t[i];
}

__device__ __forceinline__ bool is_finite(float v) { return fabsf(v) <= 3.4028235e38f; }

// A piece's sums by chains of multiply-adds.
__device__ __forceinline__ void chains(const GemmParams& p, float (&left)[4], float (&right)[4], i64 row, i64 column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) left[i] = right[i] = 0.0f;
#pragma unroll 1
    for (u32 segment = 0; segment < p.segments; ++segment) {
        const Input& x = p.a[segment > 0 ? 1 : blockIdx.z];
        const Input& w = p.b[segment > 0 ? 1 : blockIdx.z];
        const Input& beside = PAIRED ? p.b[1] : w;
        const float* a = static_cast<const float*>(x.data) + row * (A_TRANS ? 1 : x.stride);
        const float* b = static_cast<const float*>(w.data) + column * (B_TRANS ? w.stride : 1);
        const float* c = static_cast<const float*>(beside.data) + (column + APART) * (B_TRANS ? beside.stride : 1);
#pragma unroll 1
        for (i64 k = 0; k < p.k; ++k) {
            float v = a[k * (A_TRANS ? x.stride : 1)];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                i64 at = B_TRANS ? i * w.stride + k : i + k * w.stride;
                i64 at_beside = B_TRANS ? i * beside.stride + k : i + k * beside.stride;
                if (column + i < p.n) left[i] = fmaf(v, b[at], left[i]);
                if (column + APART + i < p.n) right[i] = fmaf(v, c[at_beside], right[i]);
            }
        }
    }
}

#if PRODUCT == COTANGENTS
// Four sums of dz beside one another: pre-activations become their cotangents.
__device__ __forceinline__ void take_cotangents(const GemmParams& p, const float (&dz)[4], i64 row, i64 column) {
    auto at = [&](const Output& matrix) { return element<F32>(matrix.data, row * matrix.stride + column); };
    i64 room = p.n - column;
    float pre[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        read<F32>(pre[half], at(p.pre[half]), room, C_VECTOR);
        if (p.bias[half] == nullptr) continue;
        float bias[4];
        read<F32>(bias, element<F32>(p.bias[half], column), room, false);
#pragma unroll
        for (int i = 0; i < 4; ++i) pre[half][i] += bias[i];
    }
    float to[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float dg, du;
        gate_partials(pre[0][i], pre[1][i], p.alpha, p.limit, dg, du);
        to[0][i] = dz[i] * dg;
        to[1][i] = dz[i] * du;
    }
    write<F32>(at(p.c[0]), to[0], room, C_VECTOR);
    write<F32>(at(p.c[1]), to[1], room, C_VECTOR);
}
#endif

// What becomes of a piece: four sums beside one another, and of those half a tile to the right: in paired products, of
// up.
__device__ __forceinline__ void finish(const GemmParams& p, float (&left)[4], float (&right)[4], i64 row, i64 column) {
    auto at = [&](const Output& matrix, i64 x) { return element<F32>(matrix.data, row * matrix.stride + x); };
    i64 room = p.n - column;
    // Parts of an infinity are of any sign, and scaled sums overflow sooner: where one is not finite, chains of
    // multiply-adds say what comes of it.
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        finite &= is_finite(left[i]) && is_finite(right[i]);
        left[i] *= 1.0f / SCALE / SCALE;
        right[i] *= 1.0f / SCALE / SCALE;
    }
    if (!finite) {
        float again[2][4];
        chains(p, again[0], again[1], row, column);
        // Those beside it keep their bits.
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (!is_finite(left[i])) left[i] = again[0][i];
            if (!is_finite(right[i])) right[i] = again[1][i];
        }
    }
#if PRODUCT == STORE
    const Output& c = p.c[blockIdx.z];
    if (p.add) {
        float old[4];
        read<F32>(old, at(c, column), room, C_VECTOR);
#pragma unroll
        for (int i = 0; i < 4; ++i) left[i] += old[i];
        read<F32>(old, at(c, column + APART), room - APART, C_VECTOR);
#pragma unroll
        for (int i = 0; i < 4; ++i) right[i] += old[i];
    }
    write<F32>(at(c, column), left, room, C_VECTOR);
    write<F32>(at(c, column + APART), right, room - APART, C_VECTOR);
#elif PRODUCT == COTANGENTS
    take_cotangents(p, left, row, column);
    if (room > APART) take_cotangents(p, right, row, column + APART);
#else
    float bias[2][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (p.bias[half] != nullptr) read<F32>(bias[half], element<F32>(p.bias[half], column), room, false);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        left[i] += bias[0][i];
        right[i] += bias[1][i];
    }
    if (p.pre[0].data != nullptr) {
        write<F32>(at(p.pre[0], column), left, room, C_VECTOR);
        write<F32>(at(p.pre[1], column), right, room, C_VECTOR);
    }
#if PRODUCT == GATE
#pragma unroll
    for (int i = 0; i < 4; ++i) left[i] = gate_value(left[i], right[i], p.alpha, p.limit);
    write<F32>(at(p.c[0], column), left, room, C_VECTOR);
#else
    float dz[4];
    read<F32>(dz, element<F32>(p.dz.data, row * p.dz.stride + column), room, C_VECTOR);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
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

// Where four columns of a partial tile's row are: eight lanes that write four of a row each, of rows 4 apart, meet all
// banks.
__device__ __forceinline__ int partial(int row, int chunk) { return row * EDGE + 4 * (chunk ^ (row >> 2 & 1)); }

__device__ __forceinline__ void add(float (&sum)[4], const float* from) {
    float4 v = *reinterpret_cast<const float4*>(from);
    sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
}

// Four floats to the same address in block `rank` of the cluster, whose barrier they count for. A cluster's barrier in
// its place, which has to release what was written to all of the GPU, takes 0.3 us longer.
__device__ __forceinline__ void send(u32 to, u32 barrier, u32 rank, const float (&v)[4]) {
    asm volatile(
        "{\n.reg .b32 there, arrival;\n"
        "mapa.shared::cluster.u32 there, %0, %2;\nmapa.shared::cluster.u32 arrival, %1, %2;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%3, %4, %5, %6}, [arrival];\n}"
        ::"r"(to), "r"(barrier), "r"(rank), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
        : "memory");
}

// Until all that the cluster's other blocks send is there.
__device__ __forceinline__ void wait_for_cluster(u32 barrier) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n@!done bra AGAIN;\n}" ::"r"(barrier)
        : "memory");
}

extern "C" __global__ void __cluster_dims__(SLICES, 1, 1) __launch_bounds__(THREADS, 8 / GROUPS)
    swiglu_kernel(const __grid_constant__ GemmParams p) {
    follow();
    extern __shared__ __align__(16) float shared[];
    float* received = shared + WORK;
    u32 arrival = shared_address(received + RECEIVED);
    if (SLICES > 1) {
        // Blocks of a cluster have to run, and to have their barrier, before their memory is written to.
        if (threadIdx.x == 0) {
            init_barrier(arrival, 1);
            fence_barriers();
            arrive_expecting(arrival, RECEIVED * 4);
        }
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }

    u32 rank = blockIdx.x % SLICES, tile = blockIdx.x / SLICES;
    u32 down = static_cast<u32>((p.m + ROWS - 1) / ROWS);
    i64 first_row = static_cast<i64>(tile % down) * ROWS, first_column = static_cast<i64>(tile / down) * COLUMNS;
    int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;

    // This warp's slabs.
    i64 per_segment = (p.k + DEPTH - 1) / DEPTH;
    i64 all = per_segment * p.segments;
    u32 part = rank * GROUPS + group;
    i64 first = all * part / (SLICES * GROUPS);
    int slabs = static_cast<int>(all * (part + 1) / (SLICES * GROUPS) - first);
    // The next to load.
    bool second = first >= per_segment;
    i64 next = (second ? first - per_segment : first) * DEPTH;

    Operand<!A_TRANS, ROWS, A_VECTOR, false> a;
    Operand<B_TRANS, EDGE, B_VECTOR, PAIRED> b;
    a.begin(p.a[blockIdx.z], p.a[1], first_row, p.m, lane, next, second);
    b.begin(p.b[blockIdx.z], p.b[1], first_column, p.n, lane, next, second);
    const float* ring = shared + group * RING;
    u32 ring_address = shared_address(ring);
    asm volatile("" : "+r"(ring_address));
    auto load = [&](int index) {
        if (index < slabs) {
            u32 to = ring_address + 4 * (static_cast<u32>(index) % STAGES) * SLABS;
            a.load(to, lane, next, p.k, second);
            b.load(to + 4 * SLAB_A, lane, next, p.k, second);
            next += DEPTH;
            if (!second && next >= p.k) {
                next = 0;
                second = true;
                a.enter_second();
                b.enter_second();
            }
        }
        // Also an empty group counts.
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    // Rows 4g + 2i and 4g + 2i + 1 of the warp's 32; columns 8t + j % 4 and 4 more of the half j / 4.
    float sums[2][8][4] = {};
#pragma unroll 1
    for (int index = 1 - STAGES; index < slabs; ++index) {
        if (index >= 0) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            // The whole slab is there, and nobody reads the one before it any more.
            __syncwarp();
        }
        load(index + STAGES - 1);
        if (index < 0) continue;
        const float* slab = ring + static_cast<u32>(index) % STAGES * SLABS;
        float v[4][4];
        FragmentA x[2];
        a.read(v, slab, 0, lane);
        x[0].set(v[0], v[1]);
        x[1].set(v[2], v[3]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            b.read(v, slab + SLAB_A, half * 32, lane);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                FragmentB w;
                w.set(v[j]);
                multiply(sums[0][4 * half + j], x[0], w);
                multiply(sums[1][4 * half + j], x[1], w);
            }
        }
    }

    // No copy is on its way to where partial sums go, and nobody reads there.
    __syncthreads();
#pragma unroll
    for (int row = 0; row < 4; ++row) {
#pragma unroll
        for (int chunk = 0; chunk < 4; ++chunk) {
            int half = chunk / 2, odd = chunk % 2;
            auto s = [&](int j) { return sums[row / 2][4 * half + j][row % 2 * 2 + odd]; };
            int at = partial(lane / 4 * 4 + row, half * 8 + lane % 4 * 2 + odd);
            *reinterpret_cast<float4*>(shared + group * PARTIAL + at) = {s(0), s(1), s(2), s(3)};
        }
    }
    __syncthreads();
    if (SLICES > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");

    // Partial sums of a piece are added in the order of k: those of a block, then those of its cluster.
    constexpr int SHARE = PIECES / THREADS;
    float left[SHARE][4], right[SHARE][4];
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
        int piece = i * THREADS + threadIdx.x;
        const float* from = shared + partial(piece / 8, piece % 8);
        const float* beside = shared + partial(piece / 8, piece % 8 + 8);
#pragma unroll
        for (int j = 0; j < 4; ++j) left[i][j] = right[i][j] = 0.0f;
#pragma unroll
        for (int other = 0; other < GROUPS; ++other) {
            add(left[i], from + other * PARTIAL);
            add(right[i], beside + other * PARTIAL);
        }
        u32 owner = piece / OWN;
        if (SLICES > 1 && owner != rank) {
            u32 slot = rank > owner ? rank - 1 : rank;
            u32 to = shared_address(received + (slot * OWN + piece % OWN) * 8);
            send(to, arrival, owner, left[i]);
            send(to + 16, arrival, owner, right[i]);
        }
    }
    if (SLICES > 1) wait_for_cluster(arrival);
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
        int piece = i * THREADS + threadIdx.x;
        if (SLICES > 1 && piece / OWN != rank) continue;
        if (SLICES > 1) {
            float total[2][4] = {};
#pragma unroll
            for (u32 other = 0; other < SLICES; ++other) {
                if (other == rank) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) total[0][j] += left[i][j], total[1][j] += right[i][j];
                } else {
                    u32 slot = other > rank ? other - 1 : other;
                    const float* from = received + (slot * OWN + piece % OWN) * 8;
                    add(total[0], from);
                    add(total[1], from + 4);
                }
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) left[i][j] = total[0][j], right[i][j] = total[1][j];
        }
        i64 row = first_row + piece / 8, column = first_column + piece % 8 * 4;
        if (row < p.m && column < p.n) finish(p, left[i], right[i], row, column);
    }
}

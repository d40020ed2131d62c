// GEMM on the tensor cores by mma.sync, for sm_80 and later, with the gate function on the sums where PRODUCT has one.
//
// Macros: DTYPE, TF32 (1 for F32, which is rounded to tf32), A_TRANS, B_TRANS, PRODUCT, GATE_FUNCTION, OUT_F32 (C of
// STORE is f32), BLOCK, SMEM_KB and C_VECTOR (c, pre and dz allow accesses to two elements at once).
//
// The data and the row strides of A and B are multiples of 16 bytes; m, n and k are free, and nothing outside a matrix
// is read. The grid is ceil(m / BLOCK) * ceil(n / BLOCK) x 1 x products; mma_config.cuh has the threads and the bytes
// of shared memory.
//
// Pipeline: all threads copy k block i + kStages - 1 by cp.async while they multiply block i. A thread waits for its
// own copies of block i + 1, and the barrier behind that wait says two things: everyone's copies of block i + 1 have
// landed, and everyone has read block i, whose stage is the next to be filled. Fragments are read one step ahead of
// their products, across that barrier too, so that there are always products to do.
#include "epilogue.cuh"
#include "mma_config.cuh"
#include "mma_tile.cuh"

typedef Tile<false, BLOCK, !A_TRANS> TileA;
typedef Tile<true, BLOCK, B_TRANS != 0> TileB;

constexpr u32 kStageBytes = TileA::kBytes + kHalves * TileB::kBytes;

// 16 x 16 fragments of A and B, and 16 x 8 fragments of C, in one warp's part of the tile.
constexpr u32 kFragmentsA = kWarpM / 16;
constexpr u32 kFragmentsB = kWarpN / 16;
constexpr u32 kFragmentsC = kWarpN / 8;

struct Fragments {
    u32 a[kFragmentsA][4];
    u32 b[kHalves][kFragmentsB][4];
};

#if DTYPE == F32
#define MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
#elif DTYPE == F16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif

// c += a . b, 16 x 8.
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// f32 to tf32, to nearest: the tensor cores would cut the low bits off.
__device__ __forceinline__ void round_fragment(u32 (&fragment)[4]) {
#if TF32
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fragment[i]) : "f"(__uint_as_float(fragment[i])));
    }
#endif
}

// What the ring is filled from: the k blocks of one product, or of both segments of a sum.
struct Feed {
    static constexpr u32 kTiles = 1 + kHalves;

    const GemmParams& p;
    i64 m0;
    i64 n0;
    Copier<TileA> a;
    Copier<TileB> b[kHalves];
    // Inside the matrices, from the next k block on.
    i64 k_left;
    u32 segment;

    __device__ __forceinline__ Feed(const GemmParams& p, u32 product, i64 m0, i64 n0)
        : p(p), m0(m0), n0(n0), segment(0) {
        open(product);
    }

    __device__ __forceinline__ void open(u32 product) {
        a.open(p.a[product], m0, p.m);
#pragma unroll
        for (u32 half = 0; half < kHalves; ++half) b[half].open(p.b[product + half], n0, p.n);
        k_left = p.k;
    }

    // Copies one tile of the next block into a stage: A's, or one of B's.
    __device__ __forceinline__ void copy(u32 tile, u32 stage) {
        if (tile == 0) {
            a.copy(stage, k_left);
        } else {
            b[tile - 1].copy(stage + TileA::kBytes + (tile - 1) * TileB::kBytes, k_left);
        }
    }

    // Ends the block, whose copies become one group; an empty one after the last block.
    __device__ __forceinline__ void commit() {
        commit_copies();
        k_left -= kBlockK;
        if (PRODUCT == STORE && k_left <= 0 && ++segment < p.segments) open(segment);
    }
};

// The stage after `stage`, as an offset in the ring.
__device__ __forceinline__ u32 next_stage(u32 stage) {
    return stage + kStageBytes == kStages * kStageBytes ? 0 : stage + kStageBytes;
}

extern "C" __global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    swiglu_kernel(const __grid_constant__ GemmParams p) {
    follow();
    extern __shared__ __align__(128) u8 shared[];
    u32 ring = static_cast<u32>(__cvta_generic_to_shared(shared));

    u32 tiles_m = static_cast<u32>((p.m + BLOCK - 1) / BLOCK);
    u32 tiles_n = static_cast<u32>((p.n + BLOCK - 1) / BLOCK);
    u32 group = tiles_m < kGroup ? tiles_m : kGroup;
    u32 first_m = blockIdx.x / (group * tiles_n) * group;
    u32 in_group = blockIdx.x % (group * tiles_n);
    u32 height = tiles_m - first_m < group ? tiles_m - first_m : group;
    i64 m0 = static_cast<i64>(first_m + in_group % height) * BLOCK;
    i64 n0 = static_cast<i64>(in_group / height) * BLOCK;

    u32 product = PRODUCT == STORE ? blockIdx.z : 0;
    i64 blocks = (p.k + kBlockK - 1) / kBlockK * (PRODUCT == STORE ? p.segments : 1);
    Feed feed(p, product, m0, n0);
#pragma unroll 1
    for (u32 stage = 0; stage < kStages - 1; ++stage) {
#pragma unroll
        for (u32 tile = 0; tile < Feed::kTiles; ++tile) feed.copy(tile, ring + stage * kStageBytes);
        feed.commit();
    }

    u32 warp = threadIdx.x / 32;
    u32 warp_m = warp / kWarpsN * kWarpM;
    u32 warp_n = warp % kWarpsN * kWarpN;
    u32 first_a = TileA::first(warp_m);
    u32 first_b = TileB::first(warp_n);

    float sums[kHalves][kFragmentsA][kFragmentsC][4] = {};
    Fragments fragments[2];
    auto load = [&](Fragments& to, u32 stage, u32 step) {
#pragma unroll
        for (u32 i = 0; i < kFragmentsA; ++i) TileA::load(to.a[i], stage, first_a, i * 16, step);
#pragma unroll
        for (u32 half = 0; half < kHalves; ++half) {
#pragma unroll
            for (u32 j = 0; j < kFragmentsB; ++j) {
                TileB::load(to.b[half][j], stage + TileA::kBytes + half * TileB::kBytes, first_b, j * 16, step);
            }
        }
    };
    auto multiply = [&](Fragments& from) {
#pragma unroll
        for (u32 i = 0; i < kFragmentsA; ++i) round_fragment(from.a[i]);
#pragma unroll
        for (u32 half = 0; half < kHalves; ++half) {
#pragma unroll
            for (u32 j = 0; j < kFragmentsB; ++j) {
                u32(&b)[4] = from.b[half][j];
                round_fragment(b);
#pragma unroll
                for (u32 i = 0; i < kFragmentsA; ++i) {
                    mma(sums[half][i][2 * j], from.a[i], b[0], b[1]);
                    mma(sums[half][i][2 * j + 1], from.a[i], b[2], b[3]);
                }
            }
        }
    };

    u32 reading = 0;
    u32 filling = (kStages - 1) * kStageBytes;
    wait_for_copies<kStages - 2>();
    __syncthreads();
    if (blocks > 0) load(fragments[0], ring, 0);
    for (i64 block = 0; block < blocks; ++block) {
#pragma unroll
        for (u32 step = 0; step < kSteps; ++step) {
            if (step == kSteps - 1) {
                wait_for_copies<kStages - 2>();
                __syncthreads();
                reading = next_stage(reading);
            }
            // Past the last block this reads a stage that holds nothing of use, and nothing uses it.
            load(fragments[(step + 1) % 2], ring + reading, (step + 1) % kSteps);
            multiply(fragments[step % 2]);
            // One tile in each step, behind its products, which the tensor cores work on while addresses are computed.
#pragma unroll
            for (u32 tile = 0; tile < Feed::kTiles; ++tile) {
                if (step == (tile + 2 < kSteps ? tile : kSteps - 2)) feed.copy(tile, ring + filling);
            }
            if (step == kSteps - 2) {
                feed.commit();
                filling = next_stage(filling);
            }
        }
    }
    wait_for_copies<0>();

    // A fragment of C has rows lane / 4 and 8 further, columns 2 * (lane % 4) and the next.
    u32 lane = threadIdx.x % 32;
    i64 row0 = m0 + warp_m + lane / 4;
    i64 column0 = n0 + warp_n + lane % 4 * 2;
#pragma unroll
    for (u32 j = 0; j < kFragmentsC; ++j) {
        i64 column = column0 + j * 8;
        if (column >= p.n) continue;
        bool both = column + 1 < p.n;
        float2 bias[kHalves];
#pragma unroll
        for (u32 half = 0; half < kHalves; ++half) bias[half] = bias_of_sums(p, product + half, column, both);
#pragma unroll
        for (u32 i = 0; i < kFragmentsA; ++i) {
#pragma unroll
            for (u32 below = 0; below < 2; ++below) {
                i64 row = row0 + i * 16 + below * 8;
                if (row >= p.m) continue;
                float2 pair[kHalves];
#pragma unroll
                for (u32 half = 0; half < kHalves; ++half) {
                    const float(&sum)[4] = sums[half][i][j];
                    pair[half] = {sum[2 * below] + bias[half].x, sum[2 * below + 1] + bias[half].y};
                }
                finish(p, product, row, column, both, pair);
            }
        }
    }
}

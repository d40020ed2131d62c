// The GATE product for up to 128 rows of x, on Hopper. Each weight is read once, and the time that they take from
// memory is what counts: enough of them are always on their way, and nothing else takes as long.
//
// Macros: DTYPE (F16 or BF16), B_TRANS (the weights are stored as n x k), GATE_FUNCTION, and
//
//   ROWS      8, 16, 32, 64 or 128, at least m
//   COLUMNS   64 or 128 of gate, and the same of up, for each block. Large blocks read x half as often, small ones occupy
//             more multiprocessors where there are few columns. With B_TRANS any 16 between as well (any 32 with 128 rows),
//             for as many blocks as there are multiprocessors: 78 us for 81 with 128 blocks of 112 in place of 112 of 128
//             (k = 4096, n = 14336, on an H100). In weights that are k x n such blocks would begin inside a line of L2, and
//             take 86.
//
// Data and row strides of a[0], b[0] and b[1] are multiples of 16 bytes; m, n and k are free, but not 0: TMA reads
// zeros outside a matrix. Every map's box is 64 elements wide, in the 128-byte swizzle; it has ROWS rows of x, and 64 of
// weights that are k x n, COLUMNS of n x k. z, the pre-activations and the biases may be anywhere: threads access them
// one element at a time.
//
// The grid is ceil(n / COLUMNS) blocks of kThreads threads and kSharedBytes.
//
// The weights are the left operand of the products, 16 columns of them against 8 rows of x at a time: one row costs as
// much as 8, and the tensor cores are busy for some 5 % of the time then, for 80 % with 128 rows. One thread copies k
// blocks of weights and x into a ring of stages. Each of the other warps multiplies its columns of gate and up; it
// meets the rest at the ring, where a stage is full when its bytes have come, and empty when each warp has read it.
//
// Sums are taken in an order that depends on k alone: not on m, nor on ROWS or COLUMNS.
#include "gate.cuh"
#include "sm90_ptx.cuh"

static_assert(DTYPE == F16 || DTYPE == BF16, "mma takes pairs of 16-bit elements");
static_assert(ROWS == 8 || ROWS == 16 || ROWS == 32 || ROWS == 64 || ROWS == 128, "rows that warps are laid out for");
static_assert(COLUMNS == 64 || COLUMNS == 128 || B_TRANS, "whole lines");
static_assert(COLUMNS >= 64 && COLUMNS <= 128 && COLUMNS % (ROWS == 128 ? 32 : 16) == 0, "whole warps");

typedef Element<DTYPE> In;

// Two large blocks where there are 64 rows, so that the next kernel's wait beside this one's: 84 us for 88 at k = 4096,
// n = 14336. With B_TRANS two take 93 for 90.
constexpr u32 kBlocksPerSm = COLUMNS == 64 || (ROWS == 64 && !B_TRANS) ? 2 : 1;
constexpr u32 kWarps = COLUMNS / 16;
constexpr u32 kConsumers = 32 * kWarps;
constexpr u32 kThreads = kConsumers + 32;

// Parts of x, each read by warps of its own. 128 rows have too many sums for one warp.
constexpr u32 kParts = ROWS == 128 ? 2 : 1;
// Of one warp: 16 * kTiles columns, of gate and of up, and 8 * kSlices rows.
constexpr u32 kTiles = kParts;
constexpr u32 kSlices = ROWS / kParts / 8;

// Boxes are a whole 128-byte line wide, as much as a k block.
constexpr u32 kLine = 128;
constexpr u32 kBoxColumns = 64;
constexpr u32 kTileK = kBoxColumns;
constexpr u32 kMmaK = 16;
constexpr u32 kSteps = kTileK / kMmaK;
// Of gate, and of up.
constexpr u32 kHalfBytes = COLUMNS * kLine;
constexpr u32 kStageBytes = 2 * kHalfBytes + ROWS * kLine;

// A multiprocessor has 228 KiB, and each block takes 1 KiB of them besides what it asks for. As many stages as there is
// room for, each with a full and an empty barrier: from 192 KiB of weights on the way in large blocks with few rows, to
// 128 KiB with 128.
constexpr u32 kRoom = (228 / kBlocksPerSm - 1) * 1024;
constexpr u32 kStages = kRoom / (kStageBytes + 16);
static_assert(kStages >= 2, "one stage fills while another is read");
constexpr u32 kBarriers = kStages * kStageBytes;
constexpr u32 kSharedBytes = kBarriers + kStages * 16;
static_assert(kSharedBytes <= kRoom, "all blocks of a multiprocessor run at once");

// k blocks of weights that are fetched before the kernel's turn: 93 us for 99 with 128 rows at k = 4096, n = 14336, 82 for 84
// with 64. With fewer rows it gains nothing.
constexpr u32 kAhead = ROWS >= 64 ? 6 : 0;

// The sums in shared memory, where the ring was: f32, a row of gate and up for each row of x. The 4 more between rows
// put the 32 sums that a warp writes at once into different banks.
constexpr u32 kSumsPitch = 2 * COLUMNS + 4;
static_assert(ROWS * kSumsPitch * sizeof(float) <= kBarriers, "the sums take the place of the ring");

// Completed by a stage's bytes, and by the warps that have read it.
__device__ __forceinline__ u32 full(u32 ring, u32 stage) { return ring + kBarriers + stage * 8; }
__device__ __forceinline__ u32 empty(u32 ring, u32 stage) { return ring + kBarriers + (kStages + stage) * 8; }

typedef RingCursor<kStages> Cursor;

// Brings the first weights into L2 while the kernel before this one ends; with few rows its end is short. That kernel may
// still write them: it writes to L2, where they are read once it is done.
__device__ __forceinline__ void fetch_weights(const Sm90Params& p, i32 n0, u32 blocks) {
    for (u32 block = 0; block < kAhead && block < blocks; ++block) {
        i32 k0 = static_cast<i32>(block * kTileK);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
#if B_TRANS
            fetch_box(p.b[half], k0, n0);
#else
#pragma unroll
            for (u32 column = 0; column < COLUMNS; column += kBoxColumns) {
                fetch_box(p.b[half], n0 + static_cast<i32>(column), k0);
            }
#endif
        }
    }
}

// Copies every k block, each into the next stage: gate, up, x. The next kernel is let in when all are under way. Its blocks
// would take the multiprocessors that have none of this one's if they came before, and then run two on some and none on
// others: 71 us in place of 61 at k = 4096, n = 11008, one launch after the other.
__device__ __forceinline__ void produce(const Sm90Params& p, u32 ring, i32 n0, u32 blocks) {
    // Weights are read once, x by all blocks.
    u64 first = evict_first();
    u64 last = evict_last();
    Cursor cursor;
#pragma unroll 1
    for (u32 block = 0; block < blocks; ++block) {
        i32 k0 = static_cast<i32>(block * kTileK);
        u32 to = ring + cursor.stage * kStageBytes;
        u32 barrier = full(ring, cursor.stage);
        wait(empty(ring, cursor.stage), cursor.parity ^ 1);
        arrive_expecting(barrier, kStageBytes);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
#if B_TRANS
            load_box(to, p.b[half], barrier, k0, n0, first);
#else
#pragma unroll
            for (u32 column = 0; column < COLUMNS; column += kBoxColumns) {
                load_box(to + column * kLine, p.b[half], barrier, n0 + static_cast<i32>(column), k0, first);
            }
#endif
            to += kHalfBytes;
        }
        load_box(to, p.a[0], barrier, k0, 0, last);
        cursor.advance();
    }
    let_next_start();
}

// Boxes lie in shared memory as lines of eight 16-byte chunks, and line r has chunk c at place c ^ (r % 8). So the
// eight lines that ldmatrix reads at one chunk lie in all 32 banks.
__device__ __forceinline__ u32 in_box(u32 line, u32 chunk) { return line * kLine + ((chunk ^ (line & 7)) << 4); }

// Where this lane reads its part of 16 columns from `column` on, in the block's half.
__device__ __forceinline__ u32 first_weights(u32 column) {
    u32 lane = threadIdx.x & 31;
    u32 second = (lane >> 3) & 1;
    u32 last = lane >> 4;
#if B_TRANS
    return in_box(column + second * 8 + (lane & 7), last);
#else
    u32 box = column / kBoxColumns * kTileK * kLine;
    return box + in_box(last * 8 + (lane & 7), column % kBoxColumns / 8 + second);
#endif
}

// 16 columns x 16 of k: halves of the columns first. `from` is first_weights, plus the half's address.
__device__ __forceinline__ void load_weights(u32 (&to)[4], u32 from, u32 step) {
#if B_TRANS
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from ^ (step * kMmaK * 2)));
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from + step * kMmaK * kLine));
#endif
}

// Where this lane reads its part of the rows of x from `row` on, in a stage.
__device__ __forceinline__ u32 first_rows(u32 row) {
    u32 lane = threadIdx.x & 31;
    u32 line = row + (kSlices == 1 ? 0 : lane >> 4) * 8 + (lane & 7);
    return 2 * kHalfBytes + in_box(line, (lane >> 3) & 1);
}

// 16 of k x all rows of the warp.
__device__ __forceinline__ void load_rows(u32 (&to)[kSlices][2], u32 from, u32 step) {
    from ^= step * kMmaK * 2;
    if constexpr (kSlices == 1) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0][0]), "=r"(to[0][1])
                     : "r"(from));
    } else {
#pragma unroll
        for (u32 i = 0; i < kSlices; i += 2) {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(to[i][0]), "=r"(to[i][1]), "=r"(to[i + 1][0]), "=r"(to[i + 1][1])
                         : "r"(from + i * 8 * kLine));
        }
    }
}

#if DTYPE == F16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif

// c += a . b, 16 x 8.
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

struct Fragments {
    u32 weights[2][kTiles][4];
    u32 rows[kSlices][2];
};

// The warps that multiply meet. Barrier 0 is __syncthreads.
__device__ __forceinline__ void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

// z and the pre-activations of all rows. Each thread has one column, of every second row.
__device__ __forceinline__ void finish(const GemmParams& p, const float* sums, i64 n0) {
    u32 in_tile = threadIdx.x % COLUMNS;
    i64 column = n0 + in_tile;
    if (column >= p.n) return;
    float bias[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const In::Bits* from = static_cast<const In::Bits*>(p.bias[half]);
        bias[half] = from == nullptr ? 0.0f : In::widen(from[column]);
    }
    auto at = [&](const Output& matrix, u32 row) -> In::Bits& {
        return static_cast<In::Bits*>(matrix.data)[row * matrix.stride + column];
    };
    u32 rows = static_cast<u32>(p.m);
#pragma unroll 2
    for (u32 row = threadIdx.x / COLUMNS; row < rows; row += kConsumers / COLUMNS) {
        const float* from = sums + row * kSumsPitch + in_tile;
        float gate = from[0] + bias[0];
        float up = from[COLUMNS] + bias[1];
        if (p.pre[0].data != nullptr) {
            at(p.pre[0], row) = In::narrow(gate);
            at(p.pre[1], row) = In::narrow(up);
        }
        at(p.c[0], row) = In::narrow(gate_value(gate, up, p.alpha, p.limit));
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    swiglu_kernel(const __grid_constant__ Sm90Params p) {
    // The swizzle is a function of the address: boxes start at multiples of 1 KiB.
    extern __shared__ __align__(1024) u8 shared[];
    u32 ring = static_cast<u32>(__cvta_generic_to_shared(shared));
    u32 warp = threadIdx.x / 32;
    u32 lane = threadIdx.x % 32;
    i64 n0 = static_cast<i64>(blockIdx.x) * COLUMNS;
    u32 blocks = static_cast<u32>((p.gemm.k + kTileK - 1) / kTileK);

    bool copies = warp == kWarps && lane == 0;
    if (copies) {
        prefetch(p.b[0]);
        prefetch(p.b[1]);
        prefetch(p.a[0]);
        for (u32 stage = 0; stage < kStages; ++stage) {
            init_barrier(full(ring, stage), 1);
            init_barrier(empty(ring, stage), kWarps);
        }
        fence_barriers();
        fetch_weights(p, static_cast<i32>(n0), blocks);
    }
    wait_for_previous();
    __syncthreads();
    if (copies) produce(p, ring, static_cast<i32>(n0), blocks);
    if (warp == kWarps) return;

    u32 column = warp / kParts * 16 * kTiles;
    u32 row = warp % kParts * 8 * kSlices;
    u32 weights_at[kTiles];
#pragma unroll
    for (u32 i = 0; i < kTiles; ++i) weights_at[i] = first_weights(column + 16 * i);
    u32 rows_at = first_rows(row);

    float sums[2][kTiles][kSlices][4] = {};
    Cursor cursor;
#pragma unroll 1
    for (u32 block = 0; block < blocks; ++block) {
        u32 stage = ring + cursor.stage * kStageBytes;
        Fragments fragments[2];
        auto load = [&](Fragments& to, u32 step) {
            load_rows(to.rows, stage + rows_at, step);
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
#pragma unroll
                for (u32 i = 0; i < kTiles; ++i) {
                    load_weights(to.weights[half][i], stage + half * kHalfBytes + weights_at[i], step);
                }
            }
        };
        wait(full(ring, cursor.stage), cursor.parity);
        load(fragments[0], 0);
#pragma unroll
        for (u32 step = 0; step < kSteps; ++step) {
            if (step + 1 < kSteps) {
                load(fragments[(step + 1) % 2], step + 1);
            } else {
                __syncwarp();
                if (lane == 0) arrive(empty(ring, cursor.stage));
            }
            const Fragments& from = fragments[step % 2];
#pragma unroll
            for (u32 slice = 0; slice < kSlices; ++slice) {
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
#pragma unroll
                    for (u32 i = 0; i < kTiles; ++i) {
                        mma(sums[half][i][slice], from.weights[half][i], from.rows[slice]);
                    }
                }
            }
        }
        cursor.advance();
    }

    // All have read the last stages.
    sync_consumers();
    float* shared_sums = reinterpret_cast<float*>(shared);
    // A thread's four sums are of columns lane / 4 and 8 further, each of rows 2 * (lane % 4) and the next.
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
#pragma unroll
        for (u32 i = 0; i < kTiles; ++i) {
#pragma unroll
            for (u32 slice = 0; slice < kSlices; ++slice) {
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    u32 to_row = row + slice * 8 + lane % 4 * 2 + j % 2;
                    u32 to_column = half * COLUMNS + column + i * 16 + lane / 4 + j / 2 * 8;
                    shared_sums[to_row * kSumsPitch + to_column] = sums[half][i][slice][j];
                }
            }
        }
    }
    sync_consumers();
    finish(p.gemm, shared_sums, n0);
}

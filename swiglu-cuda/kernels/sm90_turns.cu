// GEMM on Hopper's tensor cores with few k blocks and much to do behind them: two warpgroups take turns. While one of them
// multiplies, the other takes its sums of the tile before through the gate function and to C.
//
// Macros as in sm90_gemm.cu: DTYPE (F16 or BF16), A_TRANS (0), B_TRANS, PRODUCT (GATE), GATE_FUNCTION, CLUSTER (2 blocks,
// which share A), C_BOXES (1), C_VECTOR, and TILE_M, the rows of a tile (160 or 192). What it takes of its operands is the
// same, but for boxes: TILE_M / 2 rows of A, and 32 of C.
//
// In sm90_gemm.cu a tile ends in some 3,800 clocks in which the tensor cores have nothing to do (measured at 8192, 2048, 8192
// and 8192, 4096, 14336: a tenth of a tile with k = 2048). Here they wait for nobody, but a warpgroup has the sums of a
// whole tile in its registers: 128 x 192, or 160 rows for gate functions that need more of them. A tile of this shape is read
// from L2 at 37 bytes a clock, 32 at 128 x 256.
#include "sm90_turns_config.cuh"
#include "sm90_turned.cuh"

typedef RingCursor<kStages> Cursor;

// Addresses in shared memory.
struct Ring {
    u32 base;

    // Half of the columns of B.
    __device__ __forceinline__ u32 b(u32 stage, u32 half) const { return base + stage * kStageBytes + half * kBytesB; }
    // Half of the rows of A. The second follows the first.
    __device__ __forceinline__ u32 a(u32 stage, u32 half) const { return b(stage, 2) + half * kBytesA; }
    __device__ __forceinline__ u32 boxes(u32 consumer) const { return base + kRingBytes + consumer * kSlots * kBytesC; }
    // Completed by a stage's bytes.
    __device__ __forceinline__ u32 full(u32 stage) const { return base + kRingBytes + kOutBytes + stage * 8; }
    // Completed by the warpgroup that has multiplied it, in every block that the copies into it go to.
    __device__ __forceinline__ u32 empty(u32 stage) const { return full(kStages + stage); }
};

__device__ __forceinline__ u32 blocks_of_k(const GemmParams& p) { return static_cast<u32>((p.k + kTileK - 1) / kTileK); }

// One k block into a stage: this block's columns of B, and its part of the rows of A.
__device__ __forceinline__ void copy_stage(const Sm90Params& p, const Ring& ring, u32 stage, const Tile& tile, i32 k0,
                                           u32 rank) {
    u32 full = ring.full(stage);
    arrive_expecting(full, kStageBytes);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        load_box(ring.b(stage, half), p.b[half], full, B_TRANS ? k0 : tile.n0, B_TRANS ? tile.n0 : k0);
    }
    load_box(ring.a(stage, rank), p.a[0], full, k0, tile.m0 + rank * kRowsA, static_cast<u16>((1 << CLUSTER) - 1));
}

__device__ __forceinline__ void produce(const Sm90Params& p, const Ring& ring, const Order& order, u32 first,
                                        u32 step) {
    u32 blocks = blocks_of_k(p.gemm);
    Cursor cursor;
    for (u32 index = first; index < order.total; index += step) {
        Tile tile = order.at(index);
        for (u32 block = 0; block < blocks; ++block) {
            wait(ring.empty(cursor.stage), cursor.parity ^ 1);
            copy_stage(p, ring, cursor.stage, tile, static_cast<i32>(block * kTileK), order.rank);
            cursor.advance();
        }
    }
}

// A warpgroup that multiplies.
struct Consumer {
    // Columns of B that are contiguous along k take 32 bytes of it in each step, as rows of A do, others kStepK rows.
    static constexpr u64 kStepA = 32 >> 4;
    static constexpr u64 kStepB = (B_TRANS ? 32 : kStepK * 128) >> 4;

    const Ring& ring;
    u32 thread;
    // The next block to multiply.
    Cursor cursor;

    // Gives a stage back to the blocks that fill it.
    __device__ __forceinline__ void release(u32 stage) const {
        if (thread < CLUSTER) arrive_at(ring.empty(stage), thread);
    }

    // A tile, of which `started` is called when all products have been started. They are done at the end.
    template <class Started>
    __device__ __forceinline__ void multiply_tile(ColumnSums (&d)[2], u32 blocks, Started started) {
        u32 last = cursor.stage;
        for (u32 block = 0; block < blocks; ++block) {
            wait(ring.full(cursor.stage), cursor.parity);
            u64 a = descriptor(ring.a(cursor.stage, 0), 0);
            u64 b[2] = {descriptor(ring.b(cursor.stage, 0), 0), descriptor(ring.b(cursor.stage, 1), 0)};
            fence_operands();
#pragma unroll
            for (u32 step = 0; step < kSteps; ++step) {
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    multiply_turned<!B_TRANS>(d[half], b[half] + step * kStepB, a + step * kStepA, (block | step) != 0);
                }
            }
            commit_products();
            wait_for_products<1>();
            if (block > 0) release(last);
            last = cursor.stage;
            cursor.advance();
        }
        started();
        wait_for_products<0>();
        release(last);
    }
};

// A barrier's parity tells a phase from its neighbours only. So a warpgroup waits for blocks of its tile when the other has
// seen all of the tile before come, and not while those may be a whole ring behind.
__device__ __forceinline__ void consume(const Sm90Params& p, const Ring& ring, const Order& order, u32 first, u32 step) {
    constexpr u32 kTurns = 1 + kConsumers;
    u32 number = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0) - 1;
    u32 thread = threadIdx.x % kWarpgroup;
    u32 blocks = blocks_of_k(p.gemm);
    Writer writer = {ring.boxes(number), 0, 1 + number, thread % 32, thread / 32};
    Consumer consumer = {ring, thread, Cursor()};
    // The first turn is the first warpgroup's.
    if (number == 1) {
        consumer.cursor.skip(blocks);
        if (first < order.total) pass_turn(kTurns);
    }
    for (u32 index = first + number * step; index < order.total; index += 2 * step) {
        ColumnSums d[2];
        wait_for_turn(kTurns + number);
        consumer.multiply_tile(d, blocks, [&] {
            if (index + step < order.total) pass_turn(kTurns + 1 - number);
        });
        consumer.cursor.skip(blocks);
        write_tile(p, order.at(index), d, writer);
    }
    // Shared memory stays until it has been read.
    if (writer.leads()) wait_for_reads<0>();
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(kThreads, 1)
    swiglu_kernel(const __grid_constant__ Sm90Params p) {
    follow();
    extern __shared__ u8 shared[];
    Ring ring = {(static_cast<u32>(__cvta_generic_to_shared(shared)) + 1023) & ~1023u};
    if (threadIdx.x == 0) {
        prefetch(p.a[0]);
        prefetch(p.b[0]);
        prefetch(p.b[1]);
        for (u32 stage = 0; stage < kStages; ++stage) {
            init_barrier(ring.full(stage), 1);
            init_barrier(ring.empty(stage), CLUSTER);
        }
        fence_barriers();
    }
    sync_cluster();
    Order order(p, cluster_rank());
    u32 first = blockIdx.x / CLUSTER;
    u32 step = gridDim.x / CLUSTER;
    if (threadIdx.x < kWarpgroup) {
        shrink_registers<kProducerRegisters>();
        if (threadIdx.x == 0) produce(p, ring, order, first, step);
    } else {
        grow_registers<kConsumerRegisters>();
        consume(p, ring, order, first, step);
    }
    // No block ends while another may still write to its shared memory.
    __syncwarp();
    sync_cluster();
}

// GEMM on Hopper's tensor cores, with the gate function on the sums where PRODUCT has one.
//
// Macros: DTYPE (F16 or BF16, or F32 with TF32), A_TRANS, B_TRANS, PRODUCT, GATE_FUNCTION, OUT_F32 (C of STORE is f32),
// CLUSTER (1 or 2 blocks, which share B), C_BOXES (C and pre are written by TMA: their rows start and end at multiples of
// 16 bytes, and nothing is added; else as sm90_rows.cuh has it), C_VECTOR (dz may be read two elements at a time),
// FORM_COTANGENTS (A is formed first, as sm90_cotangents.cuh has it, with FORM_AHEAD and FORM_HURRIES), SLICES (blocks that share a tile, as sm90_slices.cuh
// has it: 1 to 4; 5, 6 and 8 gain nothing), TILE_N (columns of a tile, 256 or 128).
//
// With TF32 operands are f32 that was rounded before (ROUND, in elementwise.cu): tensor cores would cut the low bits off,
// and read 32-bit elements only along k. They also cut off what they add to a sum, towards zero: one step in 8 of k loses
// up to a bit, 0.9 * 2^-24 |a| . |b| on average where all products are positive. Measured on an H100 against sums in f64
// of rounded operands: 2e-6, 1e-5 and 3e-5 in the Frobenius norm at k = 784, 4096, 14336 for normal factors, of which
// rounding costs 2.9e-4; 5e-6, 2.7e-5 and 1.0e-4 for positive ones. The forward at 4096, 4096, 11008 runs at 380
// TFLOP/s, and at 328 with the rounding.
//
// Data and row strides of A and B are multiples of 16 bytes; m, n and k are free, but not 0: TMA reads zeros outside a
// matrix and, up to 16 bytes, writes nothing there. The grid is as many blocks as run at once, of kThreads threads; each
// takes tile after tile. With SLICES it is that many blocks for each tile, and each of them has kLeastBlocks k blocks.
// Every map's box is 64 rows of 128 bytes.
//
// One thread copies k blocks of A and B into a ring of stages. Two warpgroups multiply, 64 rows each; each lets its
// products of a block run while it waits for the next block, and gives a stage back when they are done. The columns of a
// tile are finished in two halves. What the two warpgroups do at the end of a tile and at the start of the next:
//
//     tensor cores   | last blocks, left | last blocks, right | first blocks, left | first blocks, right | ...
//     other units    |                   | left half to C     | right half to C    |                     |
//
// In between they multiply whole tiles: products of 256 columns read A once, where two of 128 columns would read it
// twice and run into the 128 bytes a clock of shared memory.
#include "sm90_config.cuh"
#include "sm90_epilogue.cuh"
#include "sm90_tiles.cuh"
#include "sm90_walk.cuh"
#if FORM_COTANGENTS
#include "sm90_cotangents.cuh"
#endif
#if SLICES > 1
#include "sm90_slices.cuh"
#endif
#if PRODUCT == COTANGENTS
#include "sm90_upstream.cuh"
#endif

typedef RingCursor<kStages> Cursor;

// Addresses in shared memory.
struct Ring {
    u32 base;

    __device__ __forceinline__ u32 a(u32 stage) const { return base + stage * kStageBytes; }
    __device__ __forceinline__ u32 b(u32 stage) const { return a(stage) + kBytesA; }
    __device__ __forceinline__ u32 boxes(u32 consumer) const {
        return base + kRingBytes + consumer * kSlots * kBoxBytes;
    }
    // Completed by a stage's bytes.
    __device__ __forceinline__ u32 full(u32 stage) const { return base + kRingBytes + kOutBytes + stage * 8; }
    // Completed by those who have multiplied it, in every block that the copies into it go to.
    __device__ __forceinline__ u32 empty(u32 stage) const { return full(kStages + stage); }
};

__device__ __forceinline__ void sync_blocks() {
#if CLUSTER == 1
    __syncthreads();
#else
    sync_cluster();
#endif
}

// One k block of A and B into a stage, of which this block of the cluster copies its rows of A and its part of B.
__device__ __forceinline__ void copy_stage(const Sm90Params& p, const Ring& ring, u32 stage, const Tile& tile,
                                           u32 segment, i32 k0, u32 rank) {
    u32 full = ring.full(stage);
    u32 part = tile.product + segment;
    arrive_expecting(full, kStageBytes);
#pragma unroll
    for (u32 box = 0; box < kBoxesA; ++box) {
        i32 m0 = tile.m0 + 64 * box;
        load_box(ring.a(stage) + box * kBoxBytes, p.a[part], full, A_TRANS ? m0 : k0, A_TRANS ? k0 : m0);
    }
#pragma unroll
    for (u32 i = 0; i < kBoxesB / CLUSTER; ++i) {
        // In paired products even boxes are gate and odd ones are up: the blocks of a cluster copy one of them each.
        u32 box = CLUSTER * i + rank;
        const TensorMap& map = p.b[kHalves == 2 ? box % 2 : part];
        i32 n0 = tile.n0 + 64 * static_cast<i32>(kHalves == 2 ? box / 2 : box);
        i32 x = B_TRANS ? k0 : n0;
        i32 y = B_TRANS ? n0 : k0;
        u32 to = ring.b(stage) + box * kBoxBytes;
#if CLUSTER == 1
        load_box(to, map, full, x, y);
#else
        load_box(to, map, full, x, y, static_cast<u16>((1 << CLUSTER) - 1));
#endif
    }
}

#if PRODUCT == COTANGENTS && C_BOXES
// Into L2, for the end of the tile.
__device__ __forceinline__ void fetch_pre_activations(const Sm90Params& p, const Tile& tile) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
#pragma unroll 1
        for (u32 x = 0; x < kTileN; x += kBoxColumns) {
            for (u32 y = 0; y < kTileM; y += 64) fetch_box(p.pre[half], tile.n0 + x, tile.m0 + y);
        }
    }
}
#endif

__device__ __forceinline__ void produce(const Sm90Params& p, const Ring& ring, const Order& order, u32 first,
                                        u32 step) {
    Blocks blocks(p.gemm);
    Cursor cursor;
#if FORM_COTANGENTS
    Formed formed(p);
#endif
    for (u32 index = first; index < order.total; index += step) {
        Tile tile = order.at(index);
        Walk walk;
#if PRODUCT == COTANGENTS && C_BOXES
        fetch_pre_activations(p, tile);
#endif
#if FORM_COTANGENTS
        formed.start_tile();
#endif
        for (u32 block = 0; block < blocks.total; ++block) {
#if FORM_COTANGENTS
            formed.wait_for(p.gemm, tile, walk);
#endif
            wait(ring.empty(cursor.stage), cursor.parity ^ 1);
            copy_stage(p, ring, cursor.stage, tile, walk.segment, static_cast<i32>(walk.block * kTileK), order.rank);
            cursor.advance();
            walk.advance(blocks);
        }
    }
}

// A warpgroup that multiplies.
struct Consumer {
    // Operands that are contiguous along k take 32 bytes of it in each step, others kStepK rows.
    static constexpr u64 kStepA = (A_TRANS ? kStepK * 128 : 32) >> 4;
    static constexpr u64 kStepB = (B_TRANS ? 32 : kStepK * 128) >> 4;

    const Ring& ring;
    u32 number;
    u32 thread;
    // The next block to multiply.
    Cursor cursor;

    __device__ __forceinline__ u64 a(u32 stage) const {
        return descriptor(ring.a(stage) + number * kBoxBytes, kBoxBytes);
    }
    __device__ __forceinline__ u64 b(u32 stage, u32 half) const {
        return descriptor(ring.b(stage) + half * 2 * kBoxBytes, kBoxBytes);
    }

    // Gives a stage back to the blocks that fill it.
    __device__ __forceinline__ void release(u32 stage) const {
#if CLUSTER == 1
        if (thread == 0) arrive(ring.empty(stage));
#else
        if (thread < CLUSTER) arrive_at(ring.empty(stage), thread);
#endif
    }

    // kEnd blocks from `from` on, for one half of the columns. The first half waits for the blocks to come.
    template <u32 half>
    __device__ __forceinline__ Cursor multiply_end(Sums& d, Cursor from, bool fresh) const {
#pragma unroll
        for (u32 block = 0; block < kEnd; ++block) {
            if (half == 0) wait(ring.full(from.stage), from.parity);
            fence_operands();
#pragma unroll
            for (u32 step = 0; step < kSteps; ++step) {
                multiply<A_TRANS, !B_TRANS>(d, a(from.stage) + step * kStepA, b(from.stage, half) + step * kStepB,
                                            !fresh || (block | step) != 0);
            }
            commit_products();
            from.advance();
        }
        return from;
    }

    // So many blocks of a tile, of which `product` takes the addresses of a and b for each step of k, and how far it is from the
    // first. No products are pending before and after.
    template <class Product>
    __device__ __forceinline__ void multiply_blocks(u32 blocks, Product product) {
        u32 last = cursor.stage;
        for (u32 block = 0; block < blocks; ++block) {
            wait(ring.full(cursor.stage), cursor.parity);
            fence_operands();
#pragma unroll
            for (u32 step = 0; step < kSteps; ++step) {
                product(a(cursor.stage) + step * kStepA, b(cursor.stage, 0) + step * kStepB, block | step);
            }
            commit_products();
            wait_for_products<1>();
            if (block > 0) release(last);
            last = cursor.stage;
            cursor.advance();
        }
        wait_for_products<0>();
        if (blocks > 0) release(last);
    }

    // The blocks between the ends, in whole width.
    __device__ __forceinline__ void multiply_middle(Sums (&d)[2], u32 blocks) {
        multiply_blocks(blocks, [&](u64 a, u64 b, u32) { multiply<A_TRANS, !B_TRANS>(d[0], d[1], a, b); });
    }

    // All blocks of a tile of 128 columns.
    __device__ __forceinline__ void multiply_narrow(Sums& d, u32 blocks) {
        multiply_blocks(blocks, [&](u64 a, u64 b, u32 at) { multiply<A_TRANS, !B_TRANS>(d, a, b, at != 0); });
        keep_in_order(d);
    }

    // Gives the stages of an end back, each when its products, the last that were started, are done.
    __device__ __forceinline__ void release_end(Cursor from) const {
        static_assert(kEnd == 2, "one wait for each");
        wait_for_products<1>();
        release(from.stage);
        from.advance();
        wait_for_products<0>();
        release(from.stage);
    }
};

__device__ __forceinline__ void write_half(const Sm90Params& p, const Tile& tile, u32 consumer, u32 half, Sums& d,
                                           Boxes& boxes) {
    Place place = {tile.product, tile.m0 + 64 * consumer, tile.n0 + half * kHalfColumns, boxes.lane, boxes.warp};
    if (place.column0 >= p.gemm.n) return;
#if PRODUCT == COTANGENTS
    take_upstream(p.gemm, place.row0, place.column0, d, boxes.slots, boxes.warp, boxes.lane);
#else
    write_sums(p, place, d, boxes);
#endif
}

#if TILE_N == 128
__device__ __forceinline__ void consume(const Sm90Params& p, const Ring& ring, const Order& order, u32 first,
                                        u32 step) {
    u32 number = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0) - 1;
    u32 thread = threadIdx.x % kWarpgroup;
    u32 blocks = Blocks(p.gemm).total;
    Boxes boxes = {ring.boxes(number), 0, 1 + number, thread % 32, thread / 32};
    Consumer consumer = {ring, number, thread, Cursor()};
    for (u32 index = first; index < order.total; index += step) {
        Sums d;
        consumer.multiply_narrow(d, blocks);
        write_half(p, order.at(index), number, 0, d, boxes);
    }
    // Shared memory stays until it has been read.
    if (boxes.leads()) wait_for_reads<0>();
}
#else
// The blocks of a tile between its ends. What it is added to comes to L2 during the last of them: at their start it would take
// the place of operands for a hundred microseconds. Saving forward and dWf += in f32 of 8192, 4096, 11008 took 4.66 ms so, 4.82
// with all of C fetched at the start, 4.74 without.
__device__ __forceinline__ void multiply_middle(const Sm90Params& p, const Tile& tile, Consumer& consumer,
                                                const Boxes& boxes, Sums (&d)[2], u32 blocks) {
#if PRODUCT == STORE && !C_BOXES
    constexpr u32 kFetched = 8;
    u32 last = blocks < kFetched ? blocks : kFetched;
    consumer.multiply_middle(d, blocks - last);
    if (p.gemm.add != 0) {
        i64 row0 = tile.m0 + 64 * consumer.number + kStagedRows * boxes.warp;
        RowBlock(p.gemm, p.gemm.c[tile.product], row0, tile.n0, kTileN, boxes.lane).fetch();
    }
    consumer.multiply_middle(d, last);
#else
    consumer.multiply_middle(d, blocks);
#endif
}

__device__ __forceinline__ void consume(const Sm90Params& p, const Ring& ring, const Order& order, u32 first,
                                        u32 step) {
    u32 number = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0) - 1;
    u32 thread = threadIdx.x % kWarpgroup;
    u32 blocks = Blocks(p.gemm).total;
    Boxes boxes = {ring.boxes(number), 0, 1 + number, thread % 32, thread / 32};
    Consumer consumer = {ring, number, thread, Cursor()};
    Sums d[2] = {};
    // Nothing of it is in C.
    Tile tile = {0, 0, static_cast<i32>(p.gemm.n)};
    for (u32 index = first; index < order.total; index += step) {
        Cursor start = consumer.cursor;
        consumer.cursor = consumer.multiply_end<0>(d[0], start, true);
        // All groups but those of this end. They are done; this is how the assembler knows.
        wait_for_products<kEnd>();
        write_half(p, tile, number, 1, d[1], boxes);
        tile = order.at(index);
        consumer.multiply_end<1>(d[1], start, true);
        consumer.release_end(start);
        change_width(d);
        multiply_middle(p, tile, consumer, boxes, d, blocks - 2 * kEnd);
        change_width(d);
        start = consumer.cursor;
        consumer.cursor = consumer.multiply_end<0>(d[0], start, false);
        consumer.multiply_end<1>(d[1], start, false);
        wait_for_products<kEnd>();
        write_half(p, tile, number, 0, d[0], boxes);
        consumer.release_end(start);
    }
    write_half(p, tile, number, 1, d[1], boxes);
    // Shared memory stays until it has been read.
    if (boxes.leads()) wait_for_reads<0>();
}
#endif

#if SLICES > 1
// Copies the k blocks from `first` to `last` of a tile.
__device__ __forceinline__ void produce_slice(const Sm90Params& p, const Ring& ring, const Tile& tile, u32 first,
                                              u32 last) {
    u32 each = Blocks(p.gemm).each;
    Cursor cursor;
    for (u32 block = first; block < last; ++block) {
        wait(ring.empty(cursor.stage), cursor.parity ^ 1);
        copy_stage(p, ring, cursor.stage, tile, block / each, static_cast<i32>(block % each * kTileK), 0);
        cursor.advance();
    }
}

// This block's part of a tile of its cluster.
__device__ __forceinline__ void share_tile(const Sm90Params& p, const Ring& ring, const Tile& tile) {
    u32 slice = cluster_rank();
    u32 blocks = Blocks(p.gemm).total;
    u32 first = blocks * slice / SLICES;
    u32 last = blocks * (slice + 1) / SLICES;
    if (threadIdx.x < kWarpgroup) {
        shrink_registers<kProducerRegisters>();
        if (threadIdx.x == 0) produce_slice(p, ring, tile, first, last);
        __syncwarp();
        sync_cluster();
        sync_cluster();
        return;
    }
    grow_registers<kConsumerRegisters>();
    u32 number = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0) - 1;
    u32 thread = threadIdx.x % kWarpgroup;
    Consumer consumer = {ring, number, thread, Cursor()};
    Sums d[kTileHalves] = {};
#if TILE_N == 128
    consumer.multiply_narrow(d[0], last - first);
#else
    consumer.multiply_middle(d, last - first);
#endif
    __syncwarp();
    // The ring is free in all blocks: they have read what was copied into it.
    sync_cluster();
    send_parts(ring.base, slice, number, thread, d);
    sync_cluster();
    Boxes boxes = {ring.boxes(number), 0, 1 + number, thread % 32, thread / 32};
    write_own(p, ring.base, tile, slice, number, boxes);
    // Shared memory stays until it has been read.
    if (boxes.leads()) wait_for_reads<0>();
}
#endif

extern "C" __global__ void __cluster_dims__(CLUSTER * SLICES, 1, 1) __launch_bounds__(kThreads, 1)
    swiglu_kernel(const __grid_constant__ Sm90Params p) {
    follow();
    extern __shared__ u8 shared[];
    Ring ring = {(static_cast<u32>(__cvta_generic_to_shared(shared)) + 1023) & ~1023u};
    u32 rank = CLUSTER == 1 ? 0 : cluster_rank();
    if (threadIdx.x == 0) {
        prefetch(p.a[0]);
        prefetch(p.b[0]);
        if (kHalves == 2) prefetch(p.b[1]);
        for (u32 stage = 0; stage < kStages; ++stage) {
            init_barrier(ring.full(stage), 1);
            init_barrier(ring.empty(stage), kConsumers * CLUSTER);
        }
        fence_barriers();
    }
    sync_blocks();
    Order order(p, rank);
#if SLICES > 1
    share_tile(p, ring, order.at(blockIdx.x / SLICES));
#else
    u32 first = blockIdx.x / CLUSTER;
    u32 step = gridDim.x / CLUSTER;
#if FORM_COTANGENTS
    if (forms(CLUSTER * order.total)) form(p);
#endif
    if (threadIdx.x < kWarpgroup) {
        if (!FORM_COTANGENTS) shrink_registers<kProducerRegisters>();
        if (threadIdx.x == 0) produce(p, ring, order, first, step);
    } else {
        if (!FORM_COTANGENTS) grow_registers<kConsumerRegisters>();
        consume(p, ring, order, first, step);
    }
    // No block ends while another may still write to its shared memory.
    __syncwarp();
    sync_blocks();
#endif
}

// GEMM of f32 on Hopper's tensor cores, with the gate function on the sums where PRODUCT has one.
//
// Macros: DTYPE (F32), A_TRANS, B_TRANS, PRODUCT, GATE_FUNCTION, CLUSTER (1), C_BOXES, C_VECTOR: as in sm90_gemm.cu.
//
// An operand comes as three matrices of bf16 whose sum it is, exactly (split_parts, in elementwise.cu):
// a = a0 + 2^-7 a1 + 2^-16 a2. The scales keep the parts of small elements from underflow: even the least subnormal is
// the sum of its parts; and a1 and a2 are at most half of a, so that no sum of products overflows where that of a and b
// does not by a hundredth. Of the nine products of parts the six largest are taken. Tensor cores cut off what they add,
// always towards zero, so sums are not left to them for long: each k block of 64 has fresh ones, in which the small
// products come first, and which are then added to the sums in f32, to nearest:
//
//     t = a1 b1      t = 2^-7 t + a1 b0 + a0 b1      t = 2^-7 t + a0 b0      d += t      s += a0 b2 + a2 b0
//
// and d += 2^-16 s at the end: sums of the least products may be left to tensor cores. They are what these do while a
// warpgroup adds t to d; while it scales t, the other warpgroup has them. Parts that need not be multiplied again are given
// back at once.
//
// The ends of the range are coarser. Of an element below 2^-126 the first part has fewer than 8 bits, or is 2^-133 where
// the element is less, so that what is left out is up to 2^-149 of the other factor. Where a1 b0 + a0 b1 overflows, it is
// the largest f32 instead: sums with M within a hundredth of that have 7 bits. What follows is for what is in between.
//
// Rounding, with M = |a| . |b| and u = 2^-24. |a1| and |a2| are at most 2^-8 and 2^-17 of |a| before they are scaled,
// so the products left out are less than 2 (2^-25 + 2^-35) |a| |b|, 1.001 u. One step of wgmma adds 16 products
// and the sum so far: 17 numbers, aligned to the largest and cut off; with the two bits beyond 24 that the measured
// figures below suggest, by less than 2^-25 of it each, and then to 24 bits, by 2u: 10.5 u. Four steps make a block's
// large product, and those of the small ones count for 2^-6 of that: 43 u of a block's M, and so of all of M. The k / 8 steps
// of s, which is at most 2^-16 M, come to less than 2 k 2^-16 u. Each addition to d is u of what is there, k / 64 u in all.
// Together less than (45 + k / 63) u M, where one chain of multiply-adds has k u M. For smaller k there are fewer steps, and
// shorter ones: the error is always less than 2 (k + 2) u M, the bound for any product on tensor cores.
//
// Measured on an H100, while a1 had the scale 2^-8 and s was part of t, against one chain of fmaf in f32, relative errors in the Frobenius norm at k = 784, 4096, 14336:
// 0.21, 0.15, 0.13 of the chain's for normal factors, 0.23, 0.16, 0.13 for positive ones, 1.03, 0.78, 0.74 for factors
// log-uniform in 2^-60 .. 2^60, sums of which are a few products. The worst element of positive ones was off by 6, 9
// and 16 u M (the chain by 34, 64, 136), on average by -1.25 u M: what cutting off 24 bits in four steps comes to.
//
// A forward of 4096, 4096, 11008, splitting included, runs at 117 TFLOP/s (118.7 then; wgmma alone has some 137 within the
// power limit), and at 105 where a0 b2 + a2 b0 come first in t: each wait for t costs. Pairs of blocks that copy B for each
// other were slower, 119 for 124 without splitting: a tile needs 32 bytes a clock of L2, which it supplies.
#include "sm90_split_config.cuh"
#include "sm90_epilogue.cuh"
#if PRODUCT == COTANGENTS
#include "sm90_upstream.cuh"
#endif
#include "sm90_tiles.cuh"
#include "sm90_walk.cuh"

typedef RingCursor<kStages> Cursor;

// Addresses in shared memory.
struct Ring {
    u32 base;

    __device__ __forceinline__ u32 a(u32 stage, u32 part) const {
        return base + stage * kStageBytes + part * kPartBytes;
    }
    __device__ __forceinline__ u32 b(u32 stage, u32 part) const { return a(stage, part) + kBytesA; }
    __device__ __forceinline__ u32 boxes(u32 consumer) const {
        return base + kRingBytes + consumer * kSlots * kBoxBytes;
    }
    // Completed by the bytes of a whole stage.
    __device__ __forceinline__ u32 full(u32 stage) const { return base + kRingBytes + kOutBytes + stage * 8; }
    // Completed by those who have multiplied a part.
    __device__ __forceinline__ u32 empty(u32 stage, u32 part) const { return full(kStages + stage * kParts + part); }
};

// Rows from one matrix of parts to the next: whole boxes.
__device__ __forceinline__ i32 whole_rows(i64 rows) {
    return static_cast<i32>((rows + kBoxRows - 1) / kBoxRows * kBoxRows);
}

// One part of a k block of A and B into a stage.
__device__ __forceinline__ void copy_part(const Sm90Params& p, const Ring& ring, u32 stage, u32 part,
                                          const Tile& tile, const Walk& walk) {
    u32 full = ring.full(stage);
    u32 operand = tile.product + walk.segment;
    i32 k0 = static_cast<i32>(walk.block * kTileK);
    i32 down_a = static_cast<i32>(part) * whole_rows(A_TRANS ? p.gemm.k : p.gemm.m);
    i32 down_b = static_cast<i32>(part) * whole_rows(B_TRANS ? p.gemm.n : p.gemm.k);
#pragma unroll
    for (u32 box = 0; box < kBoxesA; ++box) {
        i32 m0 = tile.m0 + 64 * box;
        load_box(ring.a(stage, part) + box * kBoxBytes, p.a[operand], full, A_TRANS ? m0 : k0,
                 (A_TRANS ? k0 : m0) + down_a);
    }
#pragma unroll
    for (u32 box = 0; box < kBoxesB; ++box) {
        // In paired products the first box is gate and the second is up.
        const TensorMap& map = p.b[kHalves == 2 ? box : operand];
        i32 n0 = tile.n0 + (kHalves == 2 ? 0 : 64 * static_cast<i32>(box));
        i32 x = B_TRANS ? k0 : n0;
        i32 y = (B_TRANS ? n0 : k0) + down_b;
        load_box(ring.b(stage, part) + box * kBoxBytes, map, full, x, y);
    }
}

__device__ __forceinline__ void produce(const Sm90Params& p, const Ring& ring, const Order& order, u32 first,
                                        u32 step) {
    Blocks blocks(p.gemm);
    Cursor cursor;
    for (u32 index = first; index < order.total; index += step) {
        Tile tile = order.at(index);
        Walk walk;
        for (u32 block = 0; block < blocks.total; ++block) {
            // The order in which they are given back.
#pragma unroll
            for (u32 i = 0; i < kParts; ++i) {
                u32 part = (i + 1) % kParts;
                wait(ring.empty(cursor.stage, part), cursor.parity ^ 1);
                if (i == 0) arrive_expecting(ring.full(cursor.stage), kStageBytes);
                copy_part(p, ring, cursor.stage, part, tile, walk);
            }
            cursor.advance();
            walk.advance(blocks);
        }
    }
}

// A warpgroup that multiplies.
struct Consumer {
    // Operands that are contiguous along k take 32 bytes of it in each step, others 16 rows.
    static constexpr u64 kStepA = (A_TRANS ? 16 * 128 : 32) >> 4;
    static constexpr u64 kStepB = (B_TRANS ? 32 : 16 * 128) >> 4;

    const Ring& ring;
    u32 number;
    u32 thread;
    // The next block to multiply.
    Cursor cursor;

    // A k block of one part of A times one of B.
    __device__ __forceinline__ void multiply_parts(Sums& t, u32 part_a, u32 part_b, bool keep) const {
        u64 a = descriptor(ring.a(cursor.stage, part_a) + number * kBoxBytes, kBoxBytes);
        u64 b = descriptor(ring.b(cursor.stage, part_b), kBoxBytes);
#pragma unroll
        for (u32 step = 0; step < kTileK / 16; ++step) {
            multiply<A_TRANS, !B_TRANS>(t, a + step * kStepA, b + step * kStepB, keep || step != 0);
        }
    }

    // Nobody here needs this part of a stage any more.
    __device__ __forceinline__ void release(u32 stage, u32 part) const {
        if (thread == 0) arrive(ring.empty(stage, part));
    }

    // Products of the block before, of first and third parts, are done; but for `later` groups that were started since.
    template <u32 later>
    __device__ __forceinline__ void finish_thirds(bool first) const {
        wait_for_products<later>();
        u32 before = (cursor.stage + kStages - 1) % kStages;
        if (first) return;
        release(before, 0);
        release(before, 2);
    }

    __device__ __forceinline__ void multiply_block(Sums& d, Sums& t, Sums& thirds, bool first) {
        wait(ring.full(cursor.stage), cursor.parity);
        fence_operands();
        multiply_parts(t, 1, 1, false);
        commit_products();
        finish_thirds<1>(first);
        wait_for_products<0>();
        keep_in_order(t);
#pragma unroll
        for (u32 i = 0; i < 64; ++i) t[i] *= 1 / kSecond;
        keep_in_order(t);
        fence_operands();
        multiply_parts(t, 1, 0, true);
        multiply_parts(t, 0, 1, true);
        commit_products();
        wait_for_products<0>();
        keep_in_order(t);
        release(cursor.stage, 1);
#pragma unroll
        for (u32 i = 0; i < 64; ++i) t[i] = finite(t[i]) * (1 / kSecond);
        keep_in_order(t);
        fence_operands();
        multiply_parts(t, 0, 0, true);
        commit_products();
        multiply_parts(thirds, 0, 2, !first);
        multiply_parts(thirds, 2, 0, true);
        commit_products();
        wait_for_products<1>();
        keep_in_order(t);
#pragma unroll
        for (u32 i = 0; i < 64; ++i) d[i] += t[i];
        cursor.advance();
    }

    // Sums of a tile.
    __device__ __forceinline__ void multiply_tile(Sums& d, u32 blocks) {
        Sums t, thirds;
        for (u32 block = 0; block < blocks; ++block) multiply_block(d, t, thirds, block == 0);
        finish_thirds<0>(false);
        keep_in_order(thirds);
#pragma unroll
        for (u32 i = 0; i < 64; ++i) d[i] += finite(thirds[i]) * (1 / kThird);
    }

  private:
    // Of the second and the third part, as elementwise.cu has it.
    static constexpr float kSecond = 128.0f;
    static constexpr float kThird = 65536.0f;

    // Where an element is an infinity or a NaN, or a sum overflows, the large products say what comes of it; the small
    // ones are of zeros and infinities, or of any sign.
    static __device__ __forceinline__ float finite(float sum) {
        return fminf(fmaxf(sum, -3.4028235e38f), 3.4028235e38f);
    }
};

__device__ __forceinline__ void consume(const Sm90Params& p, const Ring& ring, const Order& order, u32 first,
                                        u32 step) {
    u32 number = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0) - 1;
    u32 thread = threadIdx.x % kWarpgroup;
    u32 blocks = Blocks(p.gemm).total;
    Boxes boxes = {ring.boxes(number), 0, 1 + number, thread % 32, thread / 32};
    Consumer consumer = {ring, number, thread, Cursor()};
    for (u32 index = first; index < order.total; index += step) {
        Tile tile = order.at(index);
        Sums d = {};
        consumer.multiply_tile(d, blocks);
        Place place = {tile.product, tile.m0 + 64 * number, tile.n0, boxes.lane, boxes.warp};
#if PRODUCT == COTANGENTS
        take_upstream(p.gemm, place.row0, place.column0, d, boxes.slots, boxes.warp, boxes.lane);
#else
        write_sums(p, place, d, boxes);
#endif
    }
    // Shared memory stays until it has been read.
    if (boxes.leads()) wait_for_reads<0>();
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) swiglu_kernel(const __grid_constant__ Sm90Params p) {
    follow();
    extern __shared__ u8 shared[];
    Ring ring = {(static_cast<u32>(__cvta_generic_to_shared(shared)) + 1023) & ~1023u};
    if (threadIdx.x == 0) {
        prefetch(p.a[0]);
        prefetch(p.b[0]);
        if (kHalves == 2) prefetch(p.b[1]);
        for (u32 stage = 0; stage < kStages; ++stage) {
            init_barrier(ring.full(stage), 1);
            for (u32 part = 0; part < kParts; ++part) init_barrier(ring.empty(stage, part), kConsumers);
        }
        fence_barriers();
    }
    __syncthreads();
    Order order(p, 0);
    u32 first = blockIdx.x;
    u32 step = gridDim.x;
    if (threadIdx.x < kWarpgroup) {
        shrink_registers<kProducerRegisters>();
        if (threadIdx.x == 0) produce(p, ring, order, first, step);
    } else {
        grow_registers<kConsumerRegisters>();
        consume(p, ring, order, first, step);
    }
}

// Instructions of Hopper that move data and keep order: barriers in shared memory, TMA, clusters.
//
// Addresses of shared memory are 32-bit, of the block's own window, which is part of the cluster's.
#pragma once
#include "params.cuh"

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of the cluster's blocks meet, and see what the others wrote.
__device__ __forceinline__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Turns of two warpgroups: one waits at a barrier until the other passes it on.
__device__ __forceinline__ void wait_for_turn(u32 barrier) {
    asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void pass_turn(u32 barrier) {
    asm volatile("bar.arrive %0, 256;" ::"r"(barrier) : "memory");
}

// Threads of one warpgroup meet. Barrier 0 is __syncthreads.
__device__ __forceinline__ void sync_warpgroup(u32 barrier) {
    asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
}

// A warpgroup gives registers up, or takes what others gave up.
template <u32 registers>
__device__ __forceinline__ void shrink_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

template <u32 registers>
__device__ __forceinline__ void grow_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

// A barrier completes a phase when `arrivals` have arrived and all bytes that were announced have come.
__device__ __forceinline__ void init_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Initialised barriers are there for TMA and for the cluster's other blocks.
__device__ __forceinline__ void fence_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and announces bytes.
__device__ __forceinline__ void arrive_expecting(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the same barrier of block `rank` of the cluster. The default form on purpose: .release.cluster costs some
// 1000 clocks a call, a third of a whole kernel.
__device__ __forceinline__ void arrive_at(u32 barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// Until the phase of this parity is complete. A new barrier counts as one whose phase of parity 1 is.
__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}" ::"r"(
            barrier),
        "r"(parity)
        : "memory");
}

// A place in a ring of stages, and how often it was passed.
template <u32 stages>
struct RingCursor {
    u32 stage = 0;
    u32 parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }

    __device__ __forceinline__ void skip(u32 count) {
        stage += count;
        parity ^= stage / stages & 1;
        stage %= stages;
    }
};

__device__ __forceinline__ void prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Copies the box at (x, y), x being the contiguous dimension, and counts its bytes at `barrier`. What lies outside the
// matrix becomes zeros, and counts.
__device__ __forceinline__ void load_box(u32 to, const TensorMap& map, u32 barrier, i32 x, i32 y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            to),
        "l"(&map), "r"(barrier), "r"(x), "r"(y)
        : "memory");
}

// The same to each block of the cluster that has a bit in `blocks`, at the same place, each with its own barrier.
__device__ __forceinline__ void load_box(u32 to, const TensorMap& map, u32 barrier, i32 x, i32 y, u16 blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(x), "r"(y), "h"(blocks)
        : "memory");
}

// Brings a box into L2.
__device__ __forceinline__ void fetch_box(const TensorMap& map, i32 x, i32 y) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(x), "r"(y) : "memory");
}

// What is read once may leave L2 first, and what all blocks read is to leave it last.
__device__ __forceinline__ u64 evict_first() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ u64 evict_last() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// load_box to this block, under an L2 policy.
__device__ __forceinline__ void load_box(u32 to, const TensorMap& map, u32 barrier, i32 x, i32 y, u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(x), "r"(y), "l"(policy)
        : "memory");
}

// Writes a box from shared memory, without what lies outside the matrix, as a group of its own.
__device__ __forceinline__ void store_box(const TensorMap& map, u32 from, i32 x, i32 y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(from),
                 "r"(x), "r"(y)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until the thread's stores but the last `pending` have read shared memory.
template <u32 pending>
__device__ __forceinline__ void wait_for_reads() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// What this thread wrote to shared memory is there for TMA, once threads have met.
__device__ __forceinline__ void fence_for_tma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Orders what this thread wrote to memory, or saw written, before what TMA then reads of it.
__device__ __forceinline__ void fence_for_copies() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// Adds 1 to a counter of the device. After __threadfence, whoever sees it there sees all that came before that.
__device__ __forceinline__ void count(u32* counter) {
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ u32 count_at(const u32* counter) {
    u32 value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}

// Four 8 x 8 matrices of 16-bit elements: thread t has elements 2 * (t % 4) and the next of row t / 4 of each, and
// gives the address of row t % 8 of matrix t / 8.
__device__ __forceinline__ void store_matrices(u32 row, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}

// The same, of which rows become columns: thread t has elements 2 * (t % 4) and the next of column t / 4 of each.
__device__ __forceinline__ void store_transposed(u32 row, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
}

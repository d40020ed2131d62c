// A tile of one operand: kExtent rows of A or columns of B, by kBlockK of k. It lies in shared memory as it lies in
// global memory, so nothing is transposed on the way: ldmatrix.trans does that on the way to the registers.
#pragma once
#include "mma_config.cuh"

__device__ __forceinline__ u32 load_word(u32 from) {
    u32 word;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(from));
    return word;
}

// Rows of shared memory are cut into chunks of 16 bytes, the unit of cp.async and of a row of ldmatrix, and row r holds
// chunk c at place c ^ swizzle(r). Eight rows at one chunk, which ldmatrix reads at once, then lie in all 32 banks.
template <bool kIsB, u32 kExtent_, bool kAlongK_>
struct Tile {
    static constexpr u32 kExtent = kExtent_;
    // Whether k is contiguous.
    static constexpr bool kAlongK = kAlongK_;
    static constexpr u32 kRows = kAlongK ? kExtent : kBlockK;
    static constexpr u32 kRowBytes = (kAlongK ? kBlockK : kExtent) * kElementBytes;
    static constexpr u32 kChunks = kRowBytes / 16;
    static constexpr u32 kBytes = kRows * kRowBytes;
    // tf32 has no ldmatrix.trans: a warp then reads 4 rows of k x 8 elements, two chunks from each row.
    static constexpr bool kByWord = TF32 && !kAlongK;
    static_assert(!kByWord || kChunks >= 8, "four rows of k at two chunks lie in all 32 banks");

    static __device__ __forceinline__ u32 swizzle(u32 row) {
        if (kByWord) return (row & 3) << 1;
        return kChunks >= 8 ? row & 7 : (row / (8 / kChunks)) & (kChunks - 1);
    }

    static __device__ __forceinline__ u32 offset(u32 row, u32 chunk) {
        return row * kRowBytes + ((chunk ^ swizzle(row)) << 4);
    }

    // Where this lane reads its part of a fragment at `start` of the extent, where a warp's part begins. The fragment
    // `along` further in the extent and `step` further in k is at at(first, along, step).
    static __device__ __forceinline__ u32 first(u32 start) {
        u32 lane = threadIdx.x & 31;
        if (kByWord) return offset(lane & 3, (start >> 2) + (lane >> 4)) + ((lane >> 2) & 3) * 4;
        // ldmatrix.x4 takes the rows of four 8 x 8 matrices from eight lanes each.
        u32 second = (lane >> 3) & 1;
        u32 last = lane >> 4;
        u32 extent_half = kIsB ? last : second;
        u32 k_half = kIsB ? second : last;
        if (kAlongK) return offset(start + (lane & 7) + extent_half * 8, k_half);
        return offset((lane & 7) + k_half * 8, (start >> 3) + extent_half);
    }

    // Steps are multiples of the swizzle's period along rows and of two chunks across them: the former add, the latter
    // are bits of their own, so that they xor.
    static __device__ __forceinline__ u32 at(u32 first, u32 along, u32 step) {
        u32 k = step * kMmaK;
        return kAlongK ? (first ^ (k * kElementBytes)) + along * kRowBytes
                       : (first ^ (along * kElementBytes)) + k * kRowBytes;
    }

    // 16 of the extent x 32 bytes of k, in four 8 x 8 matrices. A is one mma's operand, halves of the extent first; B
    // is two mmas', halves of k first.
    static __device__ __forceinline__ void load(u32 (&to)[4], u32 base, u32 first, u32 along, u32 step) {
        u32 from = base + at(first, along, step);
        if (kByWord) {
            u32 across = base + at(first, along + 8, step);
            to[0] = load_word(from);
            to[kIsB ? 2 : 1] = load_word(across);
            to[kIsB ? 1 : 2] = load_word(from + 4 * kRowBytes);
            to[3] = load_word(across + 4 * kRowBytes);
        } else if (kAlongK) {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                         : "r"(from));
        } else {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                         : "r"(from));
        }
    }
};

// Copies the tiles of one operand, k block after k block. Each thread has one chunk of every kRowsPerPass-th row.
template <class Tile>
struct Copier {
    static constexpr u32 kRowsPerPass = kThreads / Tile::kChunks;
    static constexpr u32 kPasses = Tile::kRows / kRowsPerPass;
    static_assert(kPasses * kRowsPerPass == Tile::kRows, "every thread copies as many chunks");
    static_assert(kRowsPerPass % (Tile::kByWord ? 4 : 8) == 0, "the swizzle is the same in every pass");

    // This thread's first chunk in the k block to copy next.
    const u8* from;
    // From a pass's row to the next pass's, and from one k block to the next.
    i64 pass_bytes;
    i64 block_bytes;
    // What is left of the matrix's extent from this thread's first chunk on, at most the tile's: bytes where the extent
    // is contiguous, else rows.
    i32 left;
    // Whether the tile's extent is inside the matrix.
    bool inside;

    static __device__ __forceinline__ u32 row() { return threadIdx.x / Tile::kChunks; }
    static __device__ __forceinline__ u32 chunk() { return threadIdx.x % Tile::kChunks; }

    __device__ __forceinline__ void open(const Input& matrix, i64 start, i64 extent) {
        i64 stride = matrix.stride * kElementBytes;
        i64 origin = Tile::kAlongK ? start * stride : start * kElementBytes;
        from = static_cast<const u8*>(matrix.data) + origin + row() * stride + chunk() * 16;
        pass_bytes = kRowsPerPass * stride;
        block_bytes = Tile::kAlongK ? static_cast<i64>(kBlockKBytes) : kBlockK * stride;
        inside = extent - start >= Tile::kExtent;
        i32 rest = static_cast<i32>(inside ? Tile::kExtent : extent - start);
        left = Tile::kAlongK ? rest - static_cast<i32>(row())
                             : rest * static_cast<i32>(kElementBytes) - static_cast<i32>(chunk() * 16);
    }

    // Copies the next k block to `to`, of which `k_left` is inside the matrices: what is outside becomes zero.
    __device__ __forceinline__ void copy(u32 to, i64 k_left) {
        // A size that is not constant costs ten instructions for each chunk.
        if (inside && k_left >= kBlockK) {
            copy_passes<true>(to, 16, 0);
        } else if (k_left > 0) {
            i32 k = static_cast<i32>(k_left < kBlockK ? k_left : kBlockK);
            i32 rows = Tile::kAlongK ? left : k - static_cast<i32>(row());
            i32 bytes = Tile::kAlongK ? k * static_cast<i32>(kElementBytes) - static_cast<i32>(chunk() * 16) : left;
            copy_passes<false>(to, bytes < 0 ? 0 : bytes < 16 ? bytes : 16, rows);
        }
        from += block_bytes;
    }

    // `bytes` of this thread's chunk in each of the next `rows` rows; with kWhole all of them.
    template <bool kWhole>
    __device__ __forceinline__ void copy_passes(u32 to, i32 bytes, i32 rows) const {
        to += Tile::offset(row(), chunk());
        const u8* source = from;
#pragma unroll
        for (u32 pass = 0; pass < kPasses; ++pass) {
            i32 size = kWhole || static_cast<i32>(pass * kRowsPerPass) < rows ? bytes : 0;
            asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(size)
                         : "memory");
            source += pass_bytes;
            to += kRowsPerPass * Tile::kRowBytes;
        }
    }
};

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the last `pending` groups of this thread's copies are done.
template <u32 pending>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

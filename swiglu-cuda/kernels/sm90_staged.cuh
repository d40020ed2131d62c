// Sums on their way through shared memory, where TMA's boxes have no use of it: from a thread that has what the tensor cores
// left it to one that has neighbours in a row.
#pragma once
#include "types.cuh"

// What a warp has there at a time: the rows that are its own, of a warpgroup's 64.
constexpr u32 kStagedColumns = 64;
constexpr u32 kStagedRows = 16;
constexpr u32 kStagedBytes = kStagedRows * kStagedColumns * sizeof(float);

// Row after row, 16 bytes at place u ^ 2 * (r % 8) of row r, so that neither the lanes that write, of four rows at a time,
// nor those that read meet in a bank but in twos.
struct StagedSums {
    // A multiple of 256, the bytes of a row.
    u32 base;

    // A warp's part of a warpgroup's shared memory.
    __device__ __forceinline__ StagedSums(u32 shared, u32 warp) : base(shared + warp * kStagedBytes) {}

    // From the registers of a lane, `first` being the first of 32 sums. What was there has been read, and what is put there can
    // be.
    template <u32 count>
    __device__ __forceinline__ void put(const float (&d)[count], u32 first, u32 lane) const {
        __syncwarp();
#pragma unroll
        for (u32 chunk = 0; chunk < kStagedColumns / 8; ++chunk) {
            u32 unit = 2 * chunk + lane % 4 / 2;
            const float* sums = &d[first + 4 * chunk];
            put_pair(at(lane / 4, unit) + lane % 2 * 8, sums[0], sums[1]);
            put_pair(at(lane / 4 + 8, unit) + lane % 2 * 8, sums[2], sums[3]);
        }
        __syncwarp();
    }

    // `count` neighbours, from a multiple of 4 on.
    template <u32 count>
    __device__ __forceinline__ void get(float (&to)[count], u32 row, u32 column) const {
#pragma unroll
        for (u32 i = 0; i < count; i += 4) {
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(to[i]), "=f"(to[i + 1]), "=f"(to[i + 2]), "=f"(to[i + 3])
                         : "r"(at(row, (column + i) / 4))
                         : "memory");
        }
    }

    __device__ __forceinline__ float get_one(u32 row, u32 column) const { return get_at(place(row, column)); }

    // Where a sum is, and the one 2 * j rows below it: what takes several of a column computes little for each.
    __device__ __forceinline__ u32 place(u32 row, u32 column) const { return at(row, column / 4) + column % 4 * 4; }
    static __device__ __forceinline__ u32 below(u32 place, u32 j) { return (place ^ (j % 4 * 64)) + j * 512; }

    static __device__ __forceinline__ float get_at(u32 place) {
        float sum;
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(sum) : "r"(place) : "memory");
        return sum;
    }

  private:
    __device__ __forceinline__ u32 at(u32 row, u32 unit) const {
        return base + row * (4 * kStagedColumns) + ((unit ^ (2 * (row % 8))) * 16);
    }

    static __device__ __forceinline__ void put_pair(u32 to, float x, float y) {
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x), "f"(y) : "memory");
    }
};

// C row after row, a warp's lanes beside one another: for rows of any alignment, and where C is added to. The file with the
// kernel's shape comes first.
//
// Taken from registers as the tensor cores leave them, 16-bit elements in rows that start anywhere are one store each, of
// eight rows at a time: parts of 32-byte sectors, which L2 takes slowly. A saving forward of 8191, 4095, 11007 took 3.9 ms.
#pragma once
#include "pack.cuh"
#include "product.cuh"
#include "sm90_staged.cuh"

// What a lane stores in one access: words of memory, wherever a row of 16-bit elements starts.
constexpr int kOutType = OUT_F32 ? F32 : DTYPE;
constexpr u32 kWord = 4 / sizeof(Out::Bits);
typedef Pack<kOutType, kWord> Word;

__device__ __forceinline__ u32 narrow_word(const float (&sums)[1]) { return __float_as_uint(sums[0]); }
__device__ __forceinline__ u32 narrow_word(const float (&sums)[2]) { return narrow_pair(sums[0], sums[1]); }

// Columns of a warp's 16 rows, of which C has `count` and `columns`.
struct RowBlock {
    // Every second row starts at the same place within a word, whatever the stride.
    static constexpr u32 kAlike = kStagedRows / 2;

    Out::Bits* first;
    i64 stride;
    u32 count;
    u32 columns;
    u32 lane;

    __device__ __forceinline__ RowBlock(const GemmParams& p, const Output& c, i64 row0, i64 column0, u32 width, u32 lane)
        : first(static_cast<Out::Bits*>(c.data) + row0 * c.stride + column0),
          stride(c.stride),
          count(upto(p.m - row0, kStagedRows)),
          columns(upto(p.n - column0, width)),
          lane(lane) {}

    // Into L2: what C is added to, before it is.
    __device__ __forceinline__ void fetch() const {
        constexpr u32 kLine = 128 / sizeof(Out::Bits);
        u32 row = lane % kStagedRows;
        if (row >= count) return;
        // Rows that start within a line end in one more.
        for (u32 column = lane / kStagedRows * kLine; column < columns + kLine; column += 2 * kLine) {
            u32 x = column < columns ? column : columns - 1;
            asm volatile("prefetch.global.L2 [%0];" ::"l"(first + row * stride + x));
        }
    }

    __device__ __forceinline__ void write(const StagedSums& sums, bool add) const {
#pragma unroll 1
        for (u32 row = 0; row < 2; ++row) {
            u32 within = elements_within(first + row * stride);
#pragma unroll 1
            for (u32 x = kWord * lane + within; x < kStagedColumns; x += 32 * kWord) write_words(sums, add, row, x);
        }
        if (kWord == 2) write_ends(sums, add);
    }

  private:
    static __device__ __forceinline__ u32 upto(i64 left, u32 most) {
        return left < most ? static_cast<u32>(left < 0 ? 0 : left) : most;
    }

    // How many elements of a word are before this one.
    static __device__ __forceinline__ u32 elements_within(const Out::Bits* row) {
        return static_cast<u32>(reinterpret_cast<u64>(row)) / sizeof(Out::Bits) % kWord;
    }

    // The words from column x on of `row`, 0 or 1, and of every second row below it.
    __device__ __forceinline__ void write_words(const StagedSums& sums, bool add, u32 row, u32 x) const {
        if (x + kWord > columns) return;
        u32 places[kWord];
#pragma unroll
        for (u32 i = 0; i < kWord; ++i) places[i] = sums.place(row, x + i);
        Word old[kAlike] = {};
        if (add) {
            for_rows(row, x, [&](u32 j, u64 at) {
                asm volatile("ld.global.b32 %0, [%1];" : "=r"(old[j].words[0]) : "l"(at) : "memory");
            });
        }
        u32 words[kAlike];
#pragma unroll
        for (u32 j = 0; j < kAlike; ++j) {
            float values[kWord];
#pragma unroll
            for (u32 i = 0; i < kWord; ++i) {
                values[i] = StagedSums::get_at(StagedSums::below(places[i], j));
                if (add) values[i] = old[j].widened(i) + values[i];
            }
            words[j] = narrow_word(values);
        }
        for_rows(row, x, [&](u32 j, u64 at) {
            asm volatile("st.global.b32 [%0], %1;" ::"l"(at), "r"(words[j]) : "memory");
        });
    }

    // Where column x is in `row` and in every second row below it, as far as C has them. One address follows from the other:
    // left alone, the compiler multiplies for each, and a row takes twice as many instructions.
    template <class Function>
    __device__ __forceinline__ void for_rows(u32 row, u32 x, Function function) const {
        u64 at = reinterpret_cast<u64>(first + row * stride + x);
        u64 step = 2 * stride * sizeof(Out::Bits);
#pragma unroll
        for (u32 j = 0; j < kAlike; ++j) {
            if (row + 2 * j < count) function(j, at);
            at += step;
            asm("" : "+l"(at));
        }
    }

    // First and last elements that share their words with others' columns.
    __device__ __forceinline__ void write_ends(const StagedSums& sums, bool add) const {
        u32 row = lane % kStagedRows;
        Out::Bits* at = first + row * stride;
        u32 within = elements_within(at);
        bool begins = lane < kStagedRows;
        bool is_end = begins ? within == 1 : (columns - within) % 2 == 1;
        if (!is_end || row >= count) return;
        u32 x = begins ? 0 : columns - 1;
        float sum = sums.get_one(row, x);
        if (add) sum = Out::widen(at[x]) + sum;
        at[x] = Out::narrow(sum);
    }
};

// From sums that are dz to the cotangents of gate and up, of which the pre-activations are in memory. The file with the
// kernel's shape comes first.
//
// Sums go through shared memory, 64 columns of a warp's 16 rows at a time. What a lane finishes then are neighbours in a row, in one access each, by a loop. Taken from registers as the tensor cores leave them,
// in code that is unrolled over them, a tile took 80 us longer: the kernel was 310 KB of instructions, and waited for them.
#pragma once
#include "epilogue.cuh"
#include "pack.cuh"
#include "sm90_ptx.cuh"
#include "sm90_staged.cuh"
#include "sm90_wgmma.cuh"

// Elements that a lane takes at once: 16 bytes, or half of that where they are not one access.
constexpr u32 kTaken = C_BOXES || DTYPE == F32 ? 16 / sizeof(Out::Bits) : 4;
// Whether there is code of its own for where nothing is outside and all arguments are tame. With erf, and in f32, it would be
// as long as the other.
#define TAKE_TAME (C_BOXES && DTYPE != F32 && GATE_FUNCTION != GEGLU_ERF)
constexpr u32 kLanesInRow = kStagedColumns / kTaken;
constexpr u32 kRowsAtOnce = 32 / kLanesInRow;

#if TAKE_TAME
// A lane's place in the matrices.
struct TamePlace {
    const In::Bits* gate;
    const In::Bits* up;
    In::Bits* to_gate;
    In::Bits* to_up;

    __device__ __forceinline__ TamePlace(const GemmParams& p, i64 row, i64 column) {
        gate = static_cast<const In::Bits*>(p.pre[0].data) + row * p.pre[0].stride + column;
        up = static_cast<const In::Bits*>(p.pre[1].data) + row * p.pre[1].stride + column;
        to_gate = static_cast<In::Bits*>(p.c[0].data) + row * p.c[0].stride + column;
        to_up = static_cast<In::Bits*>(p.c[1].data) + row * p.c[1].stride + column;
    }
};

// Neighbours in a row, none of which is outside.
struct TamePair {
    Pack<DTYPE, kTaken> gate;
    Pack<DTYPE, kTaken> up;

    __device__ __forceinline__ void load(const GemmParams& p, TamePlace& at) {
        load_words(gate.words, at.gate);
        load_words(up.words, at.up);
        at.gate += kRowsAtOnce * p.pre[0].stride;
        at.up += kRowsAtOnce * p.pre[1].stride;
    }

    __device__ __forceinline__ bool is_tame_all(const GemmParams& p) const {
        bool tame = true;
#pragma unroll
        for (u32 i = 0; i < kTaken; ++i) tame &= is_tame(gate_argument(gate.widened(i), p.alpha, p.limit));
        return tame;
    }

    __device__ __forceinline__ void finish(const GemmParams& p, TamePlace& at, const float (&dz)[kTaken]) {
#pragma unroll
        for (u32 i = 0; i < kTaken; i += 2) {
            float2 dg, du;
            tame_gate_partials(gate.widened(i), up.widened(i), p.alpha, p.limit, dg.x, du.x);
            tame_gate_partials(gate.widened(i + 1), up.widened(i + 1), p.alpha, p.limit, dg.y, du.y);
            gate.words[i / 2] = narrow_pair(dz[i] * dg.x, dz[i + 1] * dg.y);
            up.words[i / 2] = narrow_pair(dz[i] * du.x, dz[i + 1] * du.y);
        }
        store_words(at.to_gate, gate.words);
        store_words(at.to_up, up.words);
        at.to_gate += kRowsAtOnce * p.c[0].stride;
        at.to_up += kRowsAtOnce * p.c[1].stride;
    }
};

// The first rows, as long as all arguments are tame. Returns how many.
__device__ __forceinline__ u32 take_tame(const GemmParams& p, i64 row0, i64 column0, const StagedSums& sums, u32 lane) {
    u32 row = lane / kLanesInRow;
    u32 column = lane % kLanesInRow * kTaken;
    TamePlace at(p, row0 + row, column0 + column);
    TamePair next;
    next.load(p, at);
#pragma unroll 1
    for (u32 done = 0; done < kStagedRows; done += kRowsAtOnce) {
        TamePair now = next;
        if (done + kRowsAtOnce < kStagedRows) next.load(p, at);
        if (!__all_sync(~0u, now.is_tame_all(p))) return done;
        float dz[kTaken];
        sums.get(dz, row + done, column);
        now.finish(p, at, dz);
    }
    return kStagedRows;
}

// Any rows from `first` on, any columns and any arguments, one after the other: there are few, and registers are for the
// sums.
__device__ __forceinline__ void take_each(const GemmParams& p, i64 row0, i64 column0, const StagedSums& sums, u32 lane,
                                          u32 first) {
#pragma unroll 1
    for (u32 i = first * kStagedColumns + lane; i < kStagedRows * kStagedColumns; i += 32) {
        u32 row = i / kStagedColumns;
        i64 y = row0 + row;
        i64 x = column0 + i % kStagedColumns;
        if (y >= p.m || x >= p.n) continue;
        float gate = load_pair<In>(p.pre[0].data, y * p.pre[0].stride + x, false).x + load_bias(p.bias[0], x, false).x;
        float up = load_pair<In>(p.pre[1].data, y * p.pre[1].stride + x, false).x + load_bias(p.bias[1], x, false).x;
        float dz = sums.get_one(row, i % kStagedColumns);
        float dg, du;
        short_gate_partials(gate, up, p.alpha, p.limit, dg, du);
        store_pair<Out>(p.c[0].data, y * p.c[0].stride + x, false, dz * dg, 0.0f);
        store_pair<Out>(p.c[1].data, y * p.c[1].stride + x, false, dz * du, 0.0f);
    }
}

#else
// Neighbours in a row of pre-activations, which become their cotangents.
struct TakenPair {
    i64 row;
    i64 column;
    // Of them in the matrix.
    i64 count;
    Pack<DTYPE, kTaken> gate;
    Pack<DTYPE, kTaken> up;

    __device__ __forceinline__ void load(const GemmParams& p, i64 y, i64 x) {
        row = y;
        column = x;
        count = y < p.m ? p.n - x : 0;
        if (count <= 0) return;
        gate.load(element<DTYPE>(p.pre[0].data, y * p.pre[0].stride + x), count, C_BOXES);
        up.load(element<DTYPE>(p.pre[1].data, y * p.pre[1].stride + x), count, C_BOXES);
    }

    __device__ __forceinline__ void finish(const GemmParams& p, const float (&dz)[kTaken]) {
        float g[kTaken], u[kTaken];
        float bias[2][kTaken] = {};
        // Of pre-activations that were computed again, and lack it.
        if (p.bias[0] != nullptr) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                read<DTYPE>(bias[half], element<DTYPE>(p.bias[half], column), count, false);
            }
        }
        bool tame = DTYPE != F32;
#pragma unroll
        for (u32 i = 0; i < kTaken; ++i) {
            g[i] = gate.widened(i) + bias[0][i];
            u[i] = up.widened(i) + bias[1][i];
            tame &= is_tame(gate_argument(g[i], p.alpha, p.limit));
        }
        if (tame) {
#pragma unroll
            for (u32 i = 0; i < kTaken; ++i) {
                float dg, du;
                tame_gate_partials(g[i], u[i], p.alpha, p.limit, dg, du);
                g[i] = dz[i] * dg;
                u[i] = dz[i] * du;
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < kTaken; ++i) {
                float dg, du;
#if DTYPE == F32
                gate_partials(g[i], u[i], p.alpha, p.limit, dg, du);
#else
                short_gate_partials(g[i], u[i], p.alpha, p.limit, dg, du);
#endif
                g[i] = dz[i] * dg;
                u[i] = dz[i] * du;
            }
        }
        write<DTYPE>(element<DTYPE>(p.c[0].data, row * p.c[0].stride + column), g, count, C_BOXES);
        write<DTYPE>(element<DTYPE>(p.c[1].data, row * p.c[1].stride + column), u, count, C_BOXES);
    }
};

// Any rows, columns and arguments. The next pre-activations are on their way while the last are finished.
__device__ __forceinline__ void take_any(const GemmParams& p, i64 row0, i64 column0, const StagedSums& sums, u32 lane) {
    u32 row = lane / kLanesInRow;
    u32 column = lane % kLanesInRow * kTaken;
    TakenPair next;
    next.load(p, row0 + row, column0 + column);
#pragma unroll 1
    for (; row < kStagedRows; row += kRowsAtOnce) {
        TakenPair now = next;
        if (row + kRowsAtOnce < kStagedRows) next.load(p, row0 + row + kRowsAtOnce, column0 + column);
        if (now.count <= 0) continue;
        float dz[kTaken];
        sums.get(dz, row, column);
        now.finish(p, dz);
    }
}
#endif

// 64 columns of a warp's rows.
template <u32 count>
__device__ __forceinline__ void take_columns(const GemmParams& p, i64 row0, i64 column0, const float (&d)[count], u32 first,
                                             const StagedSums& sums, u32 lane) {
    sums.put(d, first, lane);
#if TAKE_TAME
    bool inside = row0 + kStagedRows <= p.m && column0 + kStagedColumns <= p.n && p.bias[0] == nullptr;
    u32 done = inside ? take_tame(p, row0, column0, sums, lane) : 0;
    if (done < kStagedRows) take_each(p, row0, column0, sums, lane, done);
#else
    take_any(p, row0, column0, sums, lane);
#endif
}

// 128 columns of a warpgroup's 64 rows, whose first is row0; `shared` is where 16 KiB are the warpgroup's.
template <u32 count>
__device__ __forceinline__ void take_upstream(const GemmParams& p, i64 row0, i64 column0, const float (&d)[count],
                                              u32 shared, u32 warp, u32 lane) {
    static_assert(count == 64, "128 columns");
    StagedSums sums(shared, warp);
    take_columns(p, row0 + 16 * warp, column0, d, 0, sums, lane);
    if (column0 + kStagedColumns >= p.n) return;
    take_columns(p, row0 + 16 * warp, column0 + kStagedColumns, d, 32, sums, lane);
}

// From the sums of a warpgroup to C. The file with the kernel's shape comes first.
#pragma once
#include "epilogue.cuh"
#include "pack.cuh"
#include "sm90_ptx.cuh"
#include "sm90_rows.cuh"
#include "sm90_wgmma.cuh"

// What one thread has of 8 columns: two neighbours in one row, and in the row 8 further.
struct Chunk {
    float2 top;
    float2 bottom;
};

// A part of C: 64 rows, columns from column0 on, and what of it is this thread's.
struct Place {
    u32 product;
    i64 row0;
    i64 column0;
    u32 lane;
    u32 warp;

    __device__ __forceinline__ i64 row() const { return row0 + 16 * warp + lane / 4; }
    __device__ __forceinline__ i64 column(u32 chunk) const { return column0 + 8 * chunk + lane % 4 * 2; }
};

// Boxes of 64 rows x 128 bytes, on their way from registers to C. Two take turns: while TMA reads one, the warpgroup
// fills the other.
struct Boxes {
    u32 slots;
    u32 slot;
    u32 barrier;
    u32 lane;
    u32 warp;

    __device__ __forceinline__ bool leads() const { return warp == 0 && lane == 0; }

    // Sends the box that was filled to (x, y) of C.
    __device__ __forceinline__ void send(const TensorMap& map, i64 x, i64 y) {
        fence_for_tma();
        // The other slot, which is filled next, has been read.
        if (leads()) wait_for_reads<0>();
        sync_warpgroup(barrier);
        if (leads()) store_box(map, slots + slot * kBoxBytes, static_cast<i32>(x), static_cast<i32>(y));
        slot ^= 1;
    }

    // Fills the next box: chunk(c) are its 8-column chunks.
    // In the 128-byte swizzle, 16 bytes c of row r lie at place c ^ (r % 8).
    template <class Chunks>
    __device__ __forceinline__ void fill(Chunks chunk) const {
        u32 box = slots + slot * kBoxBytes;
#if OUT_F32 || DTYPE == F32
        u32 row = 16 * warp + lane / 4;
        u32 at = box + row * 128 + lane % 2 * 8;
#pragma unroll
        for (u32 c = 0; c < kBoxColumns / 8; ++c) {
            Chunk values = chunk(c);
            u32 place = ((2 * c + lane % 4 / 2) ^ (row % 8)) * 16;
            store_pair_shared(at + place, values.top);
            store_pair_shared(at + place + 8 * 128, values.bottom);
        }
#else
        u32 row = 16 * warp + lane % 16;
        u32 at = box + row * 128;
#pragma unroll
        for (u32 c = 0; c < kBoxColumns / 8; c += 2) {
            Chunk left = chunk(c);
            Chunk right = chunk(c + 1);
            store_matrices(at + ((c + lane / 16) ^ (row % 8)) * 16, narrow_pair(left.top.x, left.top.y),
                           narrow_pair(left.bottom.x, left.bottom.y), narrow_pair(right.top.x, right.top.y),
                           narrow_pair(right.bottom.x, right.bottom.y));
        }
#endif
    }

    static __device__ __forceinline__ void store_pair_shared(u32 at, float2 pair) {
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(pair.x), "f"(pair.y) : "memory");
    }
};

// Sums of gate, or of up, or of C.
template <u32 which, u32 count>
__device__ __forceinline__ Chunk sums_of(const float (&d)[count], u32 chunk) {
    u32 i = which * 32 + 4 * chunk;
    return {{d[i], d[i + 1]}, {d[i + 2], d[i + 3]}};
}

__device__ __forceinline__ void add_bias(const GemmParams& p, const Place& place, Sums& d) {
#pragma unroll
    for (u32 which = 0; which < kHalves; ++which) {
        if (p.bias[which] == nullptr) continue;
#pragma unroll
        for (u32 chunk = 0; chunk < kHalfColumns / 8; ++chunk) {
            i64 column = place.column(chunk);
            if (column >= p.n) continue;
            float2 bias = load_bias(p.bias[which], column, column + 1 < p.n);
            u32 i = which * 32 + 4 * chunk;
            d[i] += bias.x;
            d[i + 1] += bias.y;
            d[i + 2] += bias.x;
            d[i + 3] += bias.y;
        }
    }
}

#if PRODUCT == GATE && DTYPE == F32
__device__ __forceinline__ void take_gate(const GemmParams& p, Sums& d) {
#pragma unroll
    for (u32 i = 0; i < 32; ++i) d[i] = gate_value(d[i], d[32 + i], p.alpha, p.limit);
}
#elif PRODUCT == GATE
// Gate sums become z, in place. What an element becomes does not depend on the others: only how the warp gets there does.
__device__ __forceinline__ void take_gate(const GemmParams& p, Sums& d) {
    bool tame = true;
#pragma unroll
    for (u32 i = 0; i < 32; ++i) tame &= is_tame(gate_argument(d[i], p.alpha, p.limit));
    if (__all_sync(~0u, tame)) {
#pragma unroll
        for (u32 i = 0; i < 32; ++i) d[i] = tame_gate_value(d[i], d[32 + i], p.alpha, p.limit);
    } else {
#pragma unroll
        for (u32 i = 0; i < 32; ++i) {
            d[i] = is_tame(gate_argument(d[i], p.alpha, p.limit)) ? tame_gate_value(d[i], d[32 + i], p.alpha, p.limit)
                                                                  : gate_value(d[i], d[32 + i], p.alpha, p.limit);
        }
    }
}
#elif PRODUCT == GATE_GRADIENT
// Gate and up sums become their cotangents, in place.
__device__ __forceinline__ void take_gradients(const GemmParams& p, const Place& place, Sums& d) {
#pragma unroll
    for (u32 chunk = 0; chunk < kHalfColumns / 8; ++chunk) {
        i64 column = place.column(chunk);
        if (column >= p.n) continue;
        bool both = column + 1 < p.n;
#pragma unroll
        for (u32 below = 0; below < 2; ++below) {
            i64 row = place.row() + 8 * below;
            if (row >= p.m) continue;
            float2 dz = load_pair<In>(p.dz.data, row * p.dz.stride + column, both);
#pragma unroll
            for (u32 k = 0; k < 2; ++k) {
                float& gate = d[4 * chunk + 2 * below + k];
                float& up = d[32 + 4 * chunk + 2 * below + k];
                float dg, du;
                gate_partials(gate, up, p.alpha, p.limit, dg, du);
                gate = (k == 0 ? dz.x : dz.y) * dg;
                up = (k == 0 ? dz.x : dz.y) * du;
            }
        }
    }
}
#endif

#if PRODUCT != COTANGENTS
// A matrix that is written, and what TMA knows of it.
struct Target {
    const TensorMap& map;
    const Output& matrix;
};

// Sums of gate, or of up, or of C, to one matrix.
#if C_BOXES
// TMA leaves out what is not in the matrix, in steps of 16 bytes: its rows start and end at multiples.
template <u32 which, u32 count>
__device__ __forceinline__ void send_sums(const GemmParams&, const Target& to, const Place& place,
                                          const float (&d)[count], Boxes& boxes) {
    constexpr u32 kBoxes = count / 4 / kHalves * 8 / kBoxColumns;
#pragma unroll
    for (u32 box = 0; box < kBoxes; ++box) {
        boxes.fill([&](u32 c) { return sums_of<which>(d, box * (kBoxColumns / 8) + c); });
        boxes.send(to.map, place.column0 + box * kBoxColumns, place.row0);
    }
}
#else
template <u32 which, u32 count>
__device__ __forceinline__ void send_sums(const GemmParams& p, const Target& to, const Place& place,
                                          const float (&d)[count], const Boxes& boxes) {
    StagedSums sums(boxes.slots, place.warp);
    i64 row0 = place.row0 + kStagedRows * place.warp;
    bool add = PRODUCT == STORE && p.add != 0;
#pragma unroll
    for (u32 part = 0; part < count / 32 / kHalves; ++part) {
        i64 column0 = place.column0 + part * kStagedColumns;
        if (column0 >= p.n) return;
        sums.put(d, which * 32 + part * 32, place.lane);
        RowBlock(p, to.matrix, row0, column0, kStagedColumns, place.lane).write(sums, add);
    }
}
#endif

// What becomes of a half of a tile's sums, or of all.
__device__ __forceinline__ void write_sums(const Sm90Params& p, const Place& place, Sums& d, Boxes& boxes) {
    auto c = [&](u32 i) { return Target{p.c[i], p.gemm.c[i]}; };
#if PRODUCT == STORE
    send_sums<0>(p.gemm, c(place.product), place, d, boxes);
#else
    add_bias(p.gemm, place, d);
#if PRODUCT == GATE
    if (p.gemm.pre[0].data != nullptr) {
        send_sums<0>(p.gemm, {p.pre[0], p.gemm.pre[0]}, place, d, boxes);
        send_sums<1>(p.gemm, {p.pre[1], p.gemm.pre[1]}, place, d, boxes);
    }
    take_gate(p.gemm, d);
    send_sums<0>(p.gemm, c(0), place, d, boxes);
#else
    take_gradients(p.gemm, place, d);
    send_sums<0>(p.gemm, c(0), place, d, boxes);
    send_sums<1>(p.gemm, c(1), place, d, boxes);
#endif
#endif
}
#endif

// dAB = dz * dh/d(g, u) out of saved pre-activations and in their place, while the product that reads it runs.
//
// dX needs dAB before anything else, and a pass of its own takes as long as the memory takes to move five matrices: dX takes
// 2.95 ms with it at 8192, 4096, 14336, of which it is 0.40, and 2.62 without. Here the three warps of each block that
// have nothing to do form it, in the order in which tiles read it, and the thread that copies A waits for what it is
// about to copy.
//
// Work is claimed by a counter, so that nobody waits for a block that does not run yet; those who claim wait for nobody.
#pragma once
#include "gate.cuh"
#include "pack.cuh"
#include "sm90_tiles.cuh"
#include "sm90_walk.cuh"

// What a warp claims: 256 columns, a vector of 16 bytes for each lane, of 16 rows.
constexpr u32 kFormRows = 16;
constexpr u32 kFormColumns = 32 * 8;
static_assert(kFormColumns == kTurn * kTileK, "a turn of each segment reads what was formed together");
// Rows whose loads are in flight together: what the registers hold.
constexpr u32 kFormAhead = 3;

// Where dAB is formed: `progress` counts units that were claimed, units that are done, and then the units done of each
// rectangle of kTileM rows and kFormColumns columns.
struct Cotangents {
    u32* progress;
    u32 bands;
    u32 columns;
    // Of bands, that are swept along k together.
    u32 group;

    __device__ __forceinline__ Cotangents(const Sm90Params& p) {
        progress = p.progress;
        // As tiles are ordered; where a group of these has fewer columns than there are blocks, several groups at once.
        u32 tile_columns = static_cast<u32>((p.gemm.n + kColumns - 1) / kColumns);
        u32 groups = gridDim.x / CLUSTER / (tile_columns << p.group_log2);
        group = (CLUSTER * kTileM / kFormRows << p.group_log2) * (groups > 1 ? groups : 1);
        bands = static_cast<u32>((p.gemm.m + kFormRows - 1) / kFormRows);
        columns = static_cast<u32>((p.gemm.k + kFormColumns - 1) / kFormColumns);
    }

    __device__ __forceinline__ u32 units() const { return bands * columns; }
    __device__ __forceinline__ u32* claimed() const { return progress; }
    __device__ __forceinline__ u32* done() const { return progress + 1; }
    __device__ __forceinline__ u32* done_of(u32 tile, u32 column) const { return progress + 2 + tile * columns + column; }

    // Units of a rectangle.
    __device__ __forceinline__ u32 units_of(u32 tile) const {
        u32 left = bands - tile * (kTileM / kFormRows);
        return left < kTileM / kFormRows ? left : kTileM / kFormRows;
    }

    __device__ __forceinline__ void place(u32 unit, u32& band, u32& column) const {
        u32 first = unit / (group * columns) * group;
        u32 in_group = unit - first * columns;
        u32 height = bands - first < group ? bands - first : group;
        column = in_group / height;
        band = first + in_group - column * height;
    }
};

// 16 bytes that are read once, now: what follows does not wait for them before it needs them.
__device__ __forceinline__ void load_early(u32 (&words)[4], const void* from) {
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(from));
}

// A lane's place in the matrices, at a row of a unit.
struct FormPlace {
    In::Bits* gate;
    In::Bits* up;
    const In::Bits* dz;

    __device__ __forceinline__ FormPlace(const GemmParams& p, i64 row, i64 column) {
        gate = static_cast<In::Bits*>(const_cast<void*>(p.a[0].data)) + row * p.a[0].stride + column;
        up = static_cast<In::Bits*>(const_cast<void*>(p.a[1].data)) + row * p.a[1].stride + column;
        dz = static_cast<const In::Bits*>(p.dz.data) + row * p.dz.stride + column;
    }

    __device__ __forceinline__ void advance(const GemmParams& p) {
        gate += p.a[0].stride;
        up += p.a[1].stride;
        dz += p.dz.stride;
    }
};

// What a lane has of a row: gate and up, which become their cotangents, and dz.
struct FormRow {
    Pack<DTYPE, 8> gate;
    Pack<DTYPE, 8> up;
    Pack<DTYPE, 8> dz;

    __device__ __forceinline__ void load(const FormPlace& at) {
        load_early(gate.words, at.gate);
        load_early(up.words, at.up);
        load_early(dz.words, at.dz);
    }

    __device__ __forceinline__ void form(const GemmParams& p, const FormPlace& at) {
        bool tame = true;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) tame &= is_tame(gate_argument(gate.widened(i), p.alpha, p.limit));
        if (!tame) return form_slowly(p, at);
#pragma unroll
        for (u32 i = 0; i < 8; i += 2) {
            float2 dg, du;
            tame_gate_partials(gate.widened(i), up.widened(i), p.alpha, p.limit, dg.x, du.x);
            tame_gate_partials(gate.widened(i + 1), up.widened(i + 1), p.alpha, p.limit, dg.y, du.y);
            float2 z = {dz.widened(i), dz.widened(i + 1)};
            gate.words[i / 2] = narrow_pair(z.x * dg.x, z.y * dg.y);
            up.words[i / 2] = narrow_pair(z.x * du.x, z.y * du.y);
        }
        gate.store(at.gate, 8, true);
        up.store(at.up, 8, true);
    }

    // Rare: any gate function of any argument, without the registers and the code for eight at once.
    static __device__ __forceinline__ void form_slowly(const GemmParams& p, const FormPlace& at) {
#pragma unroll 1
        for (u32 i = 0; i < 8; ++i) {
            float z = In::widen(at.dz[i]);
            float dg, du;
            short_gate_partials(In::widen(at.gate[i]), In::widen(at.up[i]), p.alpha, p.limit, dg, du);
            at.gate[i] = In::narrow(z * dg);
            at.up[i] = In::narrow(z * du);
        }
    }
};

// What a lane does of a unit: kFormAhead rows are on their way while one is formed.
__device__ __forceinline__ void form_unit(const GemmParams& p, i64 row0, i64 column) {
    FormPlace to(p, row0, column);
    FormPlace from = to;
    u32 rows = p.m - row0 < kFormRows ? static_cast<u32>(p.m - row0) : kFormRows;
    FormRow ring[kFormAhead];
#pragma unroll
    for (u32 i = 0; i < kFormAhead; ++i) {
        if (i < rows) ring[i].load(from);
        from.advance(p);
    }
#pragma unroll 1
    for (u32 row = 0; row < rows; row += kFormAhead) {
#pragma unroll
        for (u32 i = 0; i < kFormAhead; ++i) {
            if (row + i >= rows) return;
            FormRow now = ring[i];
            if (row + i + kFormAhead < rows) ring[i].load(from);
            now.form(p, to);
            from.advance(p);
            to.advance(p);
        }
    }
}

// A warp that forms, until what it claims is not among the first `limit` units.
__device__ __forceinline__ void form(const Sm90Params& p, u32 limit) {
    Cotangents cotangents(p);
    u32 lane = threadIdx.x % 32;
    u32 units = cotangents.units();
    auto claim = [&] { return lane == 0 ? atomicAdd(cotangents.claimed(), 1u) : 0u; };
    u32 next = claim();
    while (true) {
        u32 unit = __shfl_sync(~0u, next, 0);
        if (unit >= units) return;
        // Answered while the unit is worked on.
        bool more = unit < limit;
        if (more) next = claim();
        u32 band, column;
        cotangents.place(unit, band, column);
        i64 at = static_cast<i64>(column) * kFormColumns + lane * 8;
        if (at < p.gemm.k) form_unit(p.gemm, static_cast<i64>(band) * kFormRows, at);
        // TMA, which reads next, sees memory by a way of its own.
        fence_for_copies();
        __syncwarp();
        if (lane == 0) {
            __threadfence();
            count(cotangents.done_of(band * kFormRows / kTileM, column));
            count(cotangents.done());
        }
        if (!more) return;
    }
}

// The thread that copies A, and what it knows to be formed.
struct Formed {
    Cotangents cotangents;
    bool all = false;

    __device__ __forceinline__ Formed(const Sm90Params& p) : cotangents(p) {}

    __device__ __forceinline__ void start_tile() {
        if (!all) all = count_at(cotangents.done()) >= cotangents.units();
        if (all) fence_for_copies();
    }

    // Until the turn of k blocks that starts here, in both segments, may be copied.
    __device__ __forceinline__ void wait_for(const GemmParams& p, const Tile& tile, const Walk& walk) const {
        if (all || walk.segment != 0 || walk.block % kTurn != 0) return;
        u32 row = static_cast<u32>(tile.m0) / kTileM;
        u32 column = walk.block / kTurn;
        if (tile.m0 >= p.m || column >= cotangents.columns) return;
        u32 units = cotangents.units_of(row);
        while (count_at(cotangents.done_of(row, column)) < units) {}
        fence_for_copies();
    }
};

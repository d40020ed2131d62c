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
// Rows whose loads are in flight together, and whether those of a unit start before the one before it is done. forming.rs knows
// where products wait for what is formed: with eight rows, as many as registers hold, and the next ones early, dX of 4096,
// 1024, 4096 takes 120 us, 123 with four, 142 with two, and 157 with three that start late; the product alone takes 95. L2 then
// supplies 3.9 KB a clock, as it does to the product alone. Where there is time, haste only takes L2 from the product: dX
// of 8192, 2048, 8192 takes 762 us with eight rows, and 740 with three that start late.
constexpr u32 kFormAhead = FORM_AHEAD;
constexpr bool kFormHurries = FORM_HURRIES;
static_assert(kFormRows % kFormAhead == 0, "a unit is so many rows, some times");

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

// Warps that form at once: as many as keep memory busy. More of them finish what is read first later: dX of 2048, 768, 2048
// takes 47 us with 684 and 44 with 288, of 8192, 256, 1024 51 with 428 and 55 with 384.
constexpr u32 kFormWarps = 432;

// Whether this warp forms: three of each block do, and more of those without a tile. `busy` blocks have one.
__device__ __forceinline__ bool forms(u32 busy) {
    u32 warp = threadIdx.x / 32;
    if (warp == 0 || blockIdx.x < busy) return warp != 0 && warp < 4;
    u32 others = 3 * gridDim.x < kFormWarps ? kFormWarps - 3 * gridDim.x : 0;
    return warp < 4 + others / (gridDim.x - busy);
}

// A unit, and what of it is a lane's.
struct Unit {
    u32 band;
    u32 column;
    // None where the lane's columns are beyond the matrix, or there is no such unit.
    u32 rows;
    FormPlace place;

    __device__ __forceinline__ Unit(const GemmParams& p, const Cotangents& cotangents, u32 unit, u32 lane)
        : place(p, 0, 0) {
        bool exists = unit < cotangents.units();
        cotangents.place(exists ? unit : 0, band, column);
        i64 row0 = static_cast<i64>(band) * kFormRows;
        i64 column0 = static_cast<i64>(column) * kFormColumns + lane * 8;
        bool inside = exists && column0 < p.k;
        rows = !inside ? 0 : p.m - row0 < kFormRows ? static_cast<u32>(p.m - row0) : kFormRows;
        place = FormPlace(p, row0, column0);
    }

    __device__ __forceinline__ u32 rows_from(u32 row) const { return rows > row ? rows - row : 0; }
};

// A unit of this warp is formed.
__device__ __forceinline__ void publish(const Cotangents& cotangents, const Unit& unit, u32 lane) {
    // TMA, which reads next, sees memory by a way of its own.
    fence_for_copies();
    __syncwarp();
    if (lane == 0) {
        __threadfence();
        count(cotangents.done_of(unit.band * kFormRows / kTileM, unit.column));
        count(cotangents.done());
    }
}

// A warp that forms, until nothing is left to claim.
__device__ __forceinline__ void form(const Sm90Params& p) {
    Cotangents cotangents(p);
    u32 lane = threadIdx.x % 32;
    u32 units = cotangents.units();
    auto claim = [&] { return lane == 0 ? atomicAdd(cotangents.claimed(), 1u) : 0u; };
    u32 next = __shfl_sync(~0u, claim(), 0);
    if (next >= units) return;
    Unit unit(p.gemm, cotangents, next, lane);
    FormPlace from = unit.place;
    FormRow ring[kFormAhead];
    auto load_first = [&] {
#pragma unroll
        for (u32 i = 0; i < kFormAhead; ++i) {
            if (i < unit.rows) ring[i].load(from);
            from.advance(p.gemm);
        }
    };
    load_first();
    while (next < units) {
        // Answered while the unit is worked on.
        u32 claimed = claim();
        Unit after = unit;
        FormPlace to = unit.place;
#pragma unroll 1
        for (u32 row = 0; row < kFormRows; row += kFormAhead) {
            u32 coming = unit.rows_from(row + kFormAhead);
            if (row + kFormAhead == kFormRows) {
                next = __shfl_sync(~0u, claimed, 0);
                after = Unit(p.gemm, cotangents, next, lane);
                from = after.place;
                coming = kFormHurries ? after.rows : 0;
            }
#pragma unroll
            for (u32 i = 0; i < kFormAhead; ++i) {
                if (i < unit.rows_from(row)) ring[i].form(p.gemm, to);
                if (i < coming) ring[i].load(from);
                from.advance(p.gemm);
                to.advance(p.gemm);
            }
        }
        publish(cotangents, unit, lane);
        unit = after;
        if (!kFormHurries) {
            from = unit.place;
            load_first();
        }
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

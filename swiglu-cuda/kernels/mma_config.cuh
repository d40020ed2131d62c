// Shape of an mma kernel: what follows from the macros.
//
// A block of threads owns a BLOCK x BLOCK tile of the output and walks k in steps of kBlockK, through a ring of kStages
// stages of shared memory. Threads, and bytes of shared memory by SMEM_KB (the most that a block may opt in to):
//
//                             |         | 227 (sm_90)     | 163 (sm_80)     | 99 (sm_86, 89, 120)
//     PRODUCT           BLOCK | threads |  bytes  stages  |  bytes  stages  |  bytes  stages
//     STORE                32 |     128 |  32768       4  |  32768       4  |  24576       3
//     STORE                64 |     128 |  65536       4  |  65536       4  |  49152       3
//     STORE               128 |     128 |  98304       3  |  65536       4* |  49152       3*
//     GATE, _GRADIENT      32 |     128 |  49152       4  |  36864       3  |  24576       4*
//     GATE, _GRADIENT      64 |     128 |  98304       4  |  73728       3  |  49152       4*
//     GATE, _GRADIENT     128 |     256 | 196608       4  | 147456       3  |  98304       4*
//
// A stage has 128 bytes of k, or 64 where there is a star.
#pragma once
#include "product.cuh"

static_assert((DTYPE == F32) == (TF32 == 1), "the tensor cores take 16-bit elements, or f32 rounded to tf32");
static_assert(BLOCK == 32 || BLOCK == 64 || BLOCK == 128, "the tiles that warps are laid out for");

constexpr u32 kElementBytes = sizeof(In::Bits);

// Warps are laid out kWarpsM x kWarpsN. In the largest tiles each has 128 sums per thread, half of its registers: the
// most that fits beside two sets of fragments, for the fewest shared memory reads per product.
constexpr u32 kWarpsM = 2;
constexpr u32 kWarpsN = BLOCK == 128 && kHalves == 2 ? 4 : 2;
constexpr u32 kThreads = 32 * kWarpsM * kWarpsN;
constexpr u32 kWarpM = BLOCK / kWarpsM;
constexpr u32 kWarpN = BLOCK / kWarpsN;

// Blocks that share a multiprocessor: at least eight warps, so that one block's waits hide behind another's products.
constexpr u32 kBlocksPerSm = BLOCK == 32 ? 4 : BLOCK == 64 ? 2 : 8 / (kWarpsM * kWarpsN);
// Each block takes 1 KiB besides what it asks for, and so does the one block that SMEM_KB is given for.
constexpr u32 kSharedLimit = ((SMEM_KB + 1) / kBlocksPerSm - 1) * 1024;

// A whole 128-byte line of k per row, unless that leaves fewer than three stages.
constexpr u32 kRows = BLOCK * (1 + kHalves);
constexpr u32 kBlockKBytes = kSharedLimit / (kRows * 128) >= 3 ? 128 : 64;
constexpr u32 kBlockK = kBlockKBytes / kElementBytes;
constexpr u32 kFit = kSharedLimit / (kRows * kBlockKBytes);
constexpr u32 kStages = kFit < 4 ? kFit : 4;
static_assert(kStages >= 2, "one stage fills while another is read");

// One mma takes 32 bytes of k: 16 elements of 16 bits, or 8 of tf32.
constexpr u32 kMmaK = 32 / kElementBytes;
constexpr u32 kSteps = kBlockK / kMmaK;
static_assert(kSteps % 2 == 0, "the two sets of fragments change places an even number of times per stage");

// Tiles of C that run at once should share rows of A and columns of B in L2: this many tiles of rows sweep n together.
constexpr u32 kGroup = 8;

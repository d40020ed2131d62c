// Shape of an sm90 kernel: what follows from the macros.
//
// A block of threads has three warpgroups: one that copies, and two that multiply, each 64 rows of a 128 x 256 tile. The
// columns are two halves of 128, whose sums are finished one after the other. In paired products each half has 64
// columns of gate and the same 64 of up. Where TILE_N is 128, for products of few tiles, there is but one half.
#pragma once
#include "product.cuh"
#include "sm90_ptx.cuh"

static_assert((DTYPE == F32) == (TF32 == 1), "wgmma takes 16-bit elements, or f32 that is rounded to tf32");
static_assert(TF32 == 0 || (A_TRANS == 0 && B_TRANS == 1), "wgmma reads tf32 only where k is contiguous");
static_assert(CLUSTER == 1 || CLUSTER == 2, "blocks that copy each other's part of B");
static_assert(TILE_N == 256 || (TILE_N == 128 && PRODUCT == STORE && TF32 == 0), "see src/plan/few.rs");

constexpr u32 kWarpgroup = 128;
constexpr u32 kConsumers = 2;
constexpr u32 kThreads = kWarpgroup * (1 + kConsumers);

// Registers of a thread after the copying warpgroup has given most of its own away: of the 64,512 that 384 threads start
// with, 168 each, 128 * 56 + 256 * 224. Where that warpgroup does more than copy, and those that multiply have nothing but
// sums to keep, each stays with its own.
constexpr u32 kProducerRegisters = 56;
constexpr u32 kConsumerRegisters = 224;

constexpr u32 kTileM = 64 * kConsumers;
constexpr u32 kTileN = TILE_N;
constexpr u32 kTileHalves = kTileN / 128;
// Columns of the matrices in C, of which there are two in paired products, in a tile and in a half.
constexpr u32 kColumns = kTileN / kHalves;
constexpr u32 kHalfColumns = kColumns / kTileHalves;
// The blocks of a cluster are on neighbouring rows of tiles.
constexpr u32 kClusterRows = CLUSTER;
constexpr u32 kClusterColumns = 1;
// Paired products are alone in a launch. Blocks by themselves need to know that, and pairs must not, or the assembler (of
// NVRTC 13.5) spills registers of the gate function with erf.
constexpr bool kOneProduct = kHalves == 2 && CLUSTER == 1;
// A whole 128-byte line of elements, the widest swizzle: 64 of 16 bits, or 32 of tf32.
constexpr u32 kTileK = 128 / sizeof(In::Bits);
// One wgmma takes 32 bytes of k: 16 elements of 16 bits, or 8 of tf32.
constexpr u32 kSteps = 4;
constexpr u32 kStepK = kTileK / kSteps;

// Everything moves in boxes of 64 rows x 128 bytes: 64 x 64 elements of A, B and C, or 64 x 32 of those in f32.
constexpr u32 kBoxBytes = 64 * 128;
constexpr u32 kBoxColumns = 128 / sizeof(Out::Bits);
constexpr u32 kBoxesA = kTileM / 64;
constexpr u32 kBoxesB = kTileN / 64;
constexpr u32 kBytesA = kBoxesA * kBoxBytes;
constexpr u32 kStageBytes = (kBoxesA + kBoxesB) * kBoxBytes;

// 192 KiB of stages, 32 KiB of boxes on their way to C, the barriers, and up to 1 KiB to start at a multiple of 1 KiB:
// the swizzle is a function of the address.
constexpr u32 kStages = kTileHalves == 2 ? 4 : 6;
constexpr u32 kSlots = 2;
constexpr u32 kRingBytes = kStages * kStageBytes;
constexpr u32 kOutBytes = kConsumers * kSlots * kBoxBytes;

// The first and the last k blocks of a tile are multiplied half by half, so that one half's products run while the
// other half is written to C. Both ends together fill the ring.
constexpr u32 kEnd = 2;
constexpr u32 kLeastBlocks = kTileHalves == 2 ? 2 * kEnd : 1;

// Segments take turns in k blocks, so many at a time: both halves of dAB are needed at the pace at which they are formed.
constexpr u32 kTurn = 4;

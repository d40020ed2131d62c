// Shape of a kernel of sm90_turns.cu: what follows from the macros.
#pragma once
#include "product.cuh"
#include "sm90_ptx.cuh"

static_assert(PRODUCT == GATE, "others have less to do at the end of a tile, or not once they have the sums");
static_assert(DTYPE != F32 && A_TRANS == 0, "16-bit elements, and rows of A that are read along k");
static_assert(C_BOXES == 1, "C is written in boxes");
static_assert(TILE_M == 160 || TILE_M == 192, "whole boxes of C, and sums that registers hold");
static_assert(CLUSTER == 2, "blocks that copy each other's part of A");

constexpr u32 kWarpgroup = 128;
constexpr u32 kConsumers = 2;
constexpr u32 kThreads = kWarpgroup * (1 + kConsumers);

// Registers of a thread after the copying warpgroup has given most of its own away: of the 64,512 that 384 threads start
// with, 168 each, 128 * 40 + 256 * 232. TILE_M of them are sums.
constexpr u32 kProducerRegisters = 40;
constexpr u32 kConsumerRegisters = 232;

// A tile has so many rows of C, and of its columns 64: as many of gate, and the same of up.
constexpr u32 kTileM = TILE_M;
constexpr u32 kColumns = 64;
// The blocks of a cluster are on neighbouring columns of tiles.
constexpr u32 kClusterRows = 1;
constexpr u32 kClusterColumns = CLUSTER;
constexpr bool kOneProduct = true;
// A whole 128-byte line of elements, the widest swizzle; one wgmma takes 16 of k.
constexpr u32 kTileK = 64;
constexpr u32 kSteps = 4;
constexpr u32 kStepK = kTileK / kSteps;

// Boxes have 128 bytes in a row: 64 x 64 elements of B, half the rows of A in a tile, and 32 rows of C.
constexpr u32 kBytesB = kColumns * 128;
constexpr u32 kRowsA = kTileM / 2;
constexpr u32 kBytesA = kRowsA * 128;
constexpr u32 kRowsC = 32;
constexpr u32 kBytesC = kRowsC * 128;
constexpr u32 kStageBytes = 2 * (kBytesA + kBytesB);

// 200 KiB of stages, or 180, 16 KiB of boxes on their way to C, the barriers, and up to 1 KiB to start at a multiple of 1 KiB.
constexpr u32 kStages = 5;
constexpr u32 kSlots = 2;
constexpr u32 kRingBytes = kStages * kStageBytes;
constexpr u32 kOutBytes = kConsumers * kSlots * kBytesC;

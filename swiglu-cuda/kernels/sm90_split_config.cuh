// Shape of a kernel that multiplies f32 as sums of bf16: what follows from the macros.
//
// A block of threads has three warpgroups: one that copies, and two that multiply, each 64 rows of a 128 x 128 tile. In
// paired products 64 of the columns are gate and the others the same 64 of up.
#pragma once
#include "product.cuh"
#include "sm90_ptx.cuh"

static_assert(DTYPE == F32, "other types are multiplied as they are");
static_assert(CLUSTER == 1, "each block copies for itself");

constexpr u32 kWarpgroup = 128;
constexpr u32 kConsumers = 2;
constexpr u32 kThreads = kWarpgroup * (1 + kConsumers);

// Registers of a thread after the copying warpgroup has given most of its own away: of the 64,512 that 384 threads start
// with, 168 each, 128 * 40 + 256 * 232. Three times 64 of them are sums.
constexpr u32 kProducerRegisters = 40;
constexpr u32 kConsumerRegisters = 232;

constexpr u32 kTileM = 64 * kConsumers;
constexpr u32 kTileN = 128;
// Columns of the matrices in C, of which there are two in paired products. A tile's are finished together.
constexpr u32 kColumns = kTileN / kHalves;
constexpr u32 kHalfColumns = kColumns;
// The blocks of a cluster are on neighbouring rows of tiles.
constexpr u32 kClusterRows = CLUSTER;
constexpr u32 kClusterColumns = 1;
// Paired products are alone in a launch.
constexpr bool kOneProduct = kHalves == 2;
// A whole 128-byte line of bf16, the widest swizzle.
constexpr u32 kTileK = 64;

// Everything moves in boxes of 64 rows x 128 bytes: 64 x 64 parts of A and B, or 64 x 32 elements of C.
constexpr u32 kBoxBytes = 64 * 128;
constexpr u32 kBoxColumns = 128 / sizeof(Out::Bits);
constexpr u32 kBoxesA = kTileM / 64;
constexpr u32 kBoxesB = kTileN / 64;

// The parts of an element, from the largest down; in memory one matrix of parts after the other, each with whole boxes
// of rows.
constexpr u32 kParts = 3;
constexpr i32 kBoxRows = 64;

// Two stages of 3 * 32 KiB, 32 KiB of boxes on their way to C, the barriers, and up to 1 KiB to start at a multiple of
// 1 KiB. Each part of a stage comes and goes by itself.
constexpr u32 kStages = 2;
constexpr u32 kSlots = 2;
constexpr u32 kBytesA = kBoxesA * kBoxBytes;
constexpr u32 kPartBytes = (kBoxesA + kBoxesB) * kBoxBytes;
constexpr u32 kStageBytes = kParts * kPartBytes;
constexpr u32 kRingBytes = kStages * kStageBytes;
constexpr u32 kOutBytes = kConsumers * kSlots * kBoxBytes;

// Any number of k blocks will do; segments take turns as in sm90_config.cuh.
constexpr u32 kLeastBlocks = 1;
constexpr u32 kTurn = 4;

// The GATE product for a few rows: at most ROWS of them, each weight read once. Memory-bound, so what counts is the
// number of loads in flight.
//
// DTYPE F32, F16 or BF16   ROWS 1, 2, 4 or 8, at least m   GATE_FUNCTION 0 .. 5
// B_TRANS             the weights are stored as n x k
// A_VECTOR, B_VECTOR  the operand's base addresses and row strides are multiples of 16 bytes
//
// 256 threads; x of the grid is ceil(n / COLUMNS):
//
//   B_TRANS   COLUMNS, f32 / 16 bits   static shared memory, f32 / 16 bits
//   0         32 / 64                  ROWS * 2048 / ROWS * 4096
//   1         16 / 16                  0
//
// All sums are taken in an order that depends on the macros and k alone.
#include "gate.cuh"
#include "pack.cuh"
#include "params.cuh"

constexpr int WARPS = 8;
constexpr int VECTOR = 16 / sizeof(Element<DTYPE>::Bits);

// z and the pre-activations at one place.
__device__ __forceinline__ void finish(const GemmParams& p, i64 row, i64 column, float gate, float up) {
    typedef Element<DTYPE> E;
    auto at = [&](const Output& matrix) -> E::Bits& {
        return static_cast<E::Bits*>(matrix.data)[row * matrix.stride + column];
    };
    if (p.bias[0] != nullptr) gate += E::widen(static_cast<const E::Bits*>(p.bias[0])[column]);
    if (p.bias[1] != nullptr) up += E::widen(static_cast<const E::Bits*>(p.bias[1])[column]);
    if (p.pre[0].data != nullptr) {
        at(p.pre[0]) = E::narrow(gate);
        at(p.pre[1]) = E::narrow(up);
    }
    at(p.c[0]) = E::narrow(gate_value(gate, up, p.alpha, p.limit));
}

// Rows of x past the last are read as the last: their sums are not used.
__device__ __forceinline__ const void* x_at(const GemmParams& p, int row, i64 k) {
    return element<DTYPE>(p.a[0].data, min(i64(row), p.m - 1) * p.a[0].stride + k);
}

#if B_TRANS

// A warp has PAIRS columns of gate and up; its lanes share out k, 16 bytes each at a time.
constexpr int PAIRS = 2;
constexpr int UNROLL = !(A_VECTOR && B_VECTOR) || ROWS == 8 ? 1 : ROWS == 4 ? 2 : 4;

// Adds the products of `count` elements from k on. Where count is known to be VECTOR no load needs a branch, and those
// of several steps go out together.
__device__ __forceinline__ void step(
    const GemmParams& p, float (&sums)[ROWS][PAIRS][2], const void* const (&b)[PAIRS][2], i64 k, i64 count) {
    Pack<DTYPE, VECTOR> weights[PAIRS][2];
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) {
        weights[j][0].load(element<DTYPE>(b[j][0], k), count, B_VECTOR);
        weights[j][1].load(element<DTYPE>(b[j][1], k), count, B_VECTOR);
    }
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
        Pack<DTYPE, VECTOR> x;
        x.load(x_at(p, row, k), count, A_VECTOR);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
#pragma unroll
            for (int j = 0; j < PAIRS; ++j) {
                sums[row][j][0] = fmaf(x.widened(i), weights[j][0].widened(i), sums[row][j][0]);
                sums[row][j][1] = fmaf(x.widened(i), weights[j][1].widened(i), sums[row][j][1]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) swiglu_kernel(const __grid_constant__ GemmParams p) {
    follow();
    int lane = threadIdx.x % 32;
    i64 first = (static_cast<i64>(blockIdx.x) * WARPS + threadIdx.x / 32) * PAIRS;
    float sums[ROWS][PAIRS][2] = {};
    const void* b[PAIRS][2];
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) {
        i64 column = min(first + j, p.n - 1);
        b[j][0] = element<DTYPE>(p.b[0].data, column * p.b[0].stride);
        b[j][1] = element<DTYPE>(p.b[1].data, column * p.b[1].stride);
    }
    i64 k = lane * VECTOR;
#pragma unroll UNROLL
    for (; k + VECTOR <= p.k; k += 32 * VECTOR) step(p, sums, b, k, VECTOR);
    if (k < p.k) step(p, sums, b, k, p.k - k);

    // Every lane gets every sum, and keeps those of its own output.
    float gate = 0.0f, up = 0.0f;
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
#pragma unroll
        for (int j = 0; j < PAIRS; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float& sum = sums[row][j][half];
#pragma unroll
                for (int distance = 16; distance > 0; distance /= 2) {
                    sum += __shfl_xor_sync(0xffffffff, sum, distance);
                }
            }
            bool own = lane == row * PAIRS + j;
            gate = own ? sums[row][j][0] : gate;
            up = own ? sums[row][j][1] : up;
        }
    }
    int row = lane / PAIRS;
    i64 column = first + lane % PAIRS;
    if (row < ROWS && row < p.m && column < p.n) finish(p, row, column, gate, up);
}

#else

// LANES lanes cover 128 bytes of a weight row in both halves, OWN columns each; the other groups of lanes, of all
// warps, take the rows after it. 8 rows of x leave registers for the sums of 4 columns only.
constexpr int OWN = ROWS == 8 ? 4 : VECTOR;
constexpr int COLUMNS = 8 * VECTOR;
constexpr int LANES = COLUMNS / OWN;
constexpr int SLICES = WARPS * 32 / LANES;
// Rows of weights that a thread takes at a time, with as many neighbours of x in one access: with many rows of x their
// loads would outnumber those of the weights.
constexpr int DEPTH = ROWS >= 4 && A_VECTOR && B_VECTOR ? 2 : 1;
// As many steps at once as registers are left for; compilers for the latest architectures need more of them.
constexpr bool FULL = ROWS == 8 && (DTYPE == F32 || __CUDA_ARCH__ >= 1000);
constexpr int UNROLL = !B_VECTOR || FULL ? 1 : ROWS <= 2 ? 8 : 2;
// Neighbouring lanes read neighbouring packs, or neighbouring elements.
constexpr int WIDTH = B_VECTOR ? OWN : 1;

// Where in the block's columns this thread's i-th is.
__device__ __forceinline__ int across(int i) {
    return (i / WIDTH * LANES + static_cast<int>(threadIdx.x) % LANES) * WIDTH + i % WIDTH;
}

// Adds the products of DEPTH rows of weights from k on, of which `count` are there. INSIDE: all are, and all of the
// block's columns: loads need no branch and go out together.
template <bool INSIDE>
__device__ __forceinline__ void step(const GemmParams& p, float (&sums)[ROWS][2][OWN], i64 first, i64 k, i64 count) {
    Pack<DTYPE, WIDTH> weights[DEPTH][2][OWN / WIDTH];
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < OWN; i += WIDTH) {
                i64 column = first + across(i);
                const void* from = element<DTYPE>(p.b[half].data, (k + d) * p.b[half].stride + column);
                weights[d][half][i / WIDTH].load(from, INSIDE ? WIDTH : d < count ? p.n - column : 0, B_VECTOR);
            }
        }
    }
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
        Pack<DTYPE, DEPTH> x;
        x.load(x_at(p, row, k), INSIDE ? DEPTH : count, A_VECTOR);
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int i = 0; i < OWN; ++i) {
                    float& sum = sums[row][half][i];
                    sum = fmaf(x.widened(d), weights[d][half][i / WIDTH].widened(i % WIDTH), sum);
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) swiglu_kernel(const __grid_constant__ GemmParams p) {
    follow();
    __shared__ float partial[WARPS][ROWS][2][COLUMNS];
    i64 first = static_cast<i64>(blockIdx.x) * COLUMNS;
    float sums[ROWS][2][OWN] = {};
    i64 k = threadIdx.x / LANES * DEPTH;
    if (B_VECTOR && first + COLUMNS <= p.n) {
#pragma unroll UNROLL
        for (; k + DEPTH <= p.k; k += SLICES * DEPTH) step<true>(p, sums, first, k, DEPTH);
    }
#pragma unroll 1
    for (; k < p.k; k += SLICES * DEPTH) step<false>(p, sums, first, k, p.k - k);

    // Slices of one warp are added by shuffles, then the warps in order.
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                float& sum = sums[row][half][i];
#pragma unroll
                for (int distance = 16; distance >= LANES; distance /= 2) {
                    sum += __shfl_xor_sync(0xffffffff, sum, distance);
                }
                if (threadIdx.x % 32 < LANES) partial[threadIdx.x / 32][row][half][across(i)] = sum;
            }
        }
    }
    __syncthreads();
    for (int output = threadIdx.x; output < ROWS * COLUMNS; output += 32 * WARPS) {
        int row = output / COLUMNS, column = output % COLUMNS;
        if (row >= p.m || first + column >= p.n) continue;
        float gate = 0.0f, up = 0.0f;
        for (int i = 0; i < WARPS; ++i) {
            gate += partial[i][row][0][column];
            up += partial[i][row][1][column];
        }
        finish(p, row, first + column, gate, up);
    }
}

#endif

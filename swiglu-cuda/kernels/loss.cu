// The mean softmax cross-entropy, in two passes.
//
// DTYPE F32, F16 or BF16, of the logits
//
//   PASS   x of the grid, 256 threads each
//   ROWS   ceil(rows / 8): a warp has one row; fills row_loss, row_correct and dlogits
//   MEAN   1: fills loss and correct; alone for an empty batch, whose loss is 0
#include "params.cuh"

#define ROWS 0
#define MEAN 1

constexpr int THREADS = 256;

#if PASS == ROWS

// loss = log(sum of exp(l - max)) - (l[label] - max), gradient = (softmax - onehot) / rows. A label that is no class is
// never an index, and makes the loss NaN.
extern "C" __global__ void __launch_bounds__(THREADS, 4) swiglu_kernel(const __grid_constant__ CrossEntropyParams p) {
    follow();
    typedef Element<DTYPE> E;
    i64 row = static_cast<i64>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= p.rows) return;
    auto logits = static_cast<const E::Bits*>(p.logits.data) + row * p.logits.stride;

    // The first largest logit: of equal ones the lower class wins, in a lane by its order and between lanes by choice.
    // A NaN is never larger.
    float max = __int_as_float(0xff800000);
    i64 best = 0;
    for (i64 i = lane; i < p.classes; i += 32) {
        float value = E::widen(logits[i]);
        if (value > max) {
            max = value;
            best = i;
        }
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(0xffffffff, max, distance);
        i64 other_best = __shfl_xor_sync(0xffffffff, best, distance);
        if (other > max || (other == max && other_best < best)) {
            max = other;
            best = other_best;
        }
    }

    float sum = 0.0f;
    for (i64 i = lane; i < p.classes; i += 32) sum += expf(E::widen(logits[i]) - max);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);

    i64 label = p.labels[row * p.label_stride];
    if (p.dlogits.data != nullptr) {
        auto dlogits = static_cast<E::Bits*>(p.dlogits.data) + row * p.dlogits.stride;
        float scale = 1.0f / static_cast<float>(p.rows);
        for (i64 i = lane; i < p.classes; i += 32) {
            float softmax = expf(E::widen(logits[i]) - max) / sum;
            dlogits[i] = E::narrow((softmax - (i == label ? 1.0f : 0.0f)) * scale);
        }
    }
    if (lane == 0) {
        float own = label < p.classes ? E::widen(logits[label]) : __int_as_float(0x7fc00000);
        p.row_loss[row] = logf(sum) - (own - max);
        // Where a logit is NaN none is the largest, and so is the sum.
        p.row_correct[row] = best == label && sum == sum;
    }
}

#elif PASS == MEAN

// Each thread adds every 256th row, then halves are folded: an order that depends on the number of rows alone.
extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ CrossEntropyParams p) {
    follow();
    __shared__ float loss[THREADS];
    __shared__ u32 correct[THREADS];
    int thread = threadIdx.x;
    float own_loss = 0.0f;
    u32 own_correct = 0;
#pragma unroll 4
    for (i64 row = thread; row < p.rows; row += THREADS) {
        own_loss += p.row_loss[row];
        own_correct += p.row_correct[row];
    }
    loss[thread] = own_loss;
    correct[thread] = own_correct;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) {
            loss[thread] += loss[thread + half];
            correct[thread] += correct[thread + half];
        }
    }
    if (thread == 0) {
        *p.loss = loss[0] / static_cast<float>(max(p.rows, i64(1)));
        if (p.correct != nullptr) *p.correct = correct[0];
    }
}

#endif

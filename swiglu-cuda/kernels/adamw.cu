// One step of AdamW (arXiv 1711.05101).
//
// DTYPE F32, F16 or BF16, of the parameter   GRADIENT_F32: the gradient is f32 whatever DTYPE is
//
// 256 threads; any grid in x from 1 block on, also for an empty parameter: blocks stride over the elements, WIDTH of
// them per thread at a time. A few blocks for each multiprocessor are enough.
#include "pack.cuh"
#include "params.cuh"

constexpr int THREADS = 256;
// 16 bytes of f32.
constexpr int WIDTH = 4;
constexpr int GRADIENT = GRADIENT_F32 ? F32 : DTYPE;

// Zero in place of a subnormal. A moment whose gradient stays zero decays into the subnormals and, rounded to nearest,
// never leaves them.
__device__ __forceinline__ float normal(float value) { return fabsf(value) < 1.17549435e-38f ? 0.0f : value; }

// 1 - beta^step.
__device__ double correction(float beta, u32 step) {
    double power = 1.0;
    for (double square = beta; step != 0; step >>= 1, square *= square) {
        if (step & 1) power *= square;
    }
    return 1.0 - power;
}

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ AdamWParams p) {
    follow();
    // lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t).
    __shared__ float rate, root;
    if (threadIdx.x == 0) {
        u32 steps = *p.steps;
        u32 step = steps == 0xffffffffu ? steps : steps + 1;
        rate = static_cast<float>(p.lr / correction(p.beta1, step));
        root = static_cast<float>(1.0 / sqrt(correction(p.beta2, step)));
        // The block that draws the last ticket knows that all have read the counter.
        __threadfence();
        if (atomicAdd(p.ticket, 1) == gridDim.x - 1) {
            *p.ticket = 0;
            *p.steps = step;
        }
    }
    __syncthreads();

    float keep = 1.0f - p.lr * p.weight_decay;
    bool mixed = p.master.data != nullptr;
    const Output& values = mixed ? p.master : p.parameter;
    bool whole = aligned<GRADIENT>(p.gradient.data, p.gradient.stride) &&
                 aligned<DTYPE>(p.parameter.data, p.parameter.stride) && aligned<F32>(p.first.data, p.first.stride) &&
                 aligned<F32>(p.second.data, p.second.stride) && (!mixed || aligned<F32>(values.data, values.stride));
    i64 per_row = (p.cols + WIDTH - 1) / WIDTH;
    i64 packs = p.rows * per_row;
    for (i64 pack = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x; pack < packs;
         pack += static_cast<i64>(gridDim.x) * THREADS) {
        i64 row = pack / per_row;
        i64 column = (pack - row * per_row) * WIDTH;
        i64 count = p.cols - column;
        void* parameter_at = element<DTYPE>(p.parameter.data, row * p.parameter.stride + column);
        void* first_at = element<F32>(p.first.data, row * p.first.stride + column);
        void* second_at = element<F32>(p.second.data, row * p.second.stride + column);
        void* master_at = element<F32>(p.master.data, row * p.master.stride + column);

        float gradient[WIDTH], first[WIDTH], second[WIDTH], value[WIDTH];
        read<GRADIENT>(gradient, element<GRADIENT>(p.gradient.data, row * p.gradient.stride + column), count, whole);
        read<F32>(first, first_at, count, whole);
        read<F32>(second, second_at, count, whole);
        if (mixed) {
            read<F32>(value, master_at, count, whole);
        } else {
            read<DTYPE>(value, parameter_at, count, whole);
        }
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            first[i] = normal(p.beta1 * first[i] + (1.0f - p.beta1) * gradient[i]);
            second[i] = normal(p.beta2 * second[i] + (1.0f - p.beta2) * (gradient[i] * gradient[i]));
            value[i] = keep * value[i] - rate * first[i] / (sqrtf(second[i]) * root + p.epsilon);
        }
        write<F32>(first_at, first, count, whole);
        write<F32>(second_at, second, count, whole);
        if (mixed) write<F32>(master_at, value, count, whole);
        write<DTYPE>(parameter_at, value, count, whole);
    }
}

// Passes over matrices that are bound by memory.
//
// DTYPE F32, F16 or BF16   GATE_FUNCTION 0 .. 5   OUT_F32, for COLUMN_SUMS: `to` is f32 whatever DTYPE is
// TRANSPOSED, for ROUND: `to` is cols x rows
//
//   PASS             struct             x of the grid, 256 threads each
//   FORWARD          GateParams         ceil(rows * ceil(cols / VECTOR) / 256), VECTOR elements of DTYPE in 16 bytes
//   BACKWARD         GateParams         the same
//   ADD_BIAS         AddBiasParams      the same
//   PARTIAL_SUMS     ColumnSumsParams   chunks * ceil(cols / 256)
//   COLUMN_SUMS      ColumnSumsParams   ceil(cols / 256)
//   REALIGN          RealignParams      as ADD_BIAS, for each job
//   SPLIT            RealignParams      the same for rows that are filled up to a multiple of 64, and VECTOR of bf16
//   ROUND            RealignParams      ceil(rows / 64) * ceil(cols / 64) for each job, a block for each tile
//   GATHER           GatherParams       as ADD_BIAS
//
// Any address and stride will do: a matrix with 16-byte alignment is seen to at run time.
#include "gate.cuh"
#include "pack.cuh"
#include "params.cuh"

#define FORWARD 0
#define BACKWARD 1
#define ADD_BIAS 2
#define PARTIAL_SUMS 3
#define COLUMN_SUMS 4
#define REALIGN 5
#define SPLIT 6
#define ROUND 7
#define GATHER 8

constexpr int THREADS = 256;
constexpr int VECTOR = 16 / sizeof(Element<PASS == SPLIT ? BF16 : DTYPE>::Bits);

// This thread's VECTOR elements of a rows x cols matrix, of whose blocks this is number `block`: false past its end.
__device__ __forceinline__ bool place(i64 rows, i64 cols, i64& row, i64& column, u32 block = blockIdx.x) {
    i64 per_row = (cols + VECTOR - 1) / VECTOR;
    i64 index = static_cast<i64>(block) * THREADS + threadIdx.x;
    row = index / per_row;
    column = (index - row * per_row) * VECTOR;
    return row < rows;
}

// Whose blocks this one is among.
__device__ __forceinline__ const RealignJob& job_of(const RealignParams& p) {
    constexpr u32 JOBS = sizeof(p.jobs) / sizeof(RealignJob);
    u32 job = 0;
    while (job + 1 < JOBS && blockIdx.x >= p.jobs[job + 1].first_block) ++job;
    return p.jobs[job];
}

#if PASS == FORWARD || PASS == BACKWARD

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ GateParams p) {
    follow();
    i64 row, column;
    if (!place(p.rows, p.cols, row, column)) return;
    i64 count = p.cols - column;
    bool whole = aligned<DTYPE>(p.gate.data, p.gate.stride) && aligned<DTYPE>(p.up.data, p.up.stride) &&
                 aligned<DTYPE>(p.z.data, p.z.stride);
    const void* gate_at = element<DTYPE>(p.gate.data, row * p.gate.stride + column);
    const void* up_at = element<DTYPE>(p.up.data, row * p.up.stride + column);
    void* z_at = element<DTYPE>(p.z.data, row * p.z.stride + column);

    float gate[VECTOR], up[VECTOR], z[VECTOR];
    read<DTYPE>(gate, gate_at, count, whole);
    read<DTYPE>(up, up_at, count, whole);
#if PASS == FORWARD
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) z[i] = gate_value(gate[i], up[i], p.alpha, p.limit);
    write<DTYPE>(z_at, z, count, whole);
#else
    read<DTYPE>(z, z_at, count, whole);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        float dg, du;
#if DTYPE == F32
        gate_partials(gate[i], up[i], p.alpha, p.limit, dg, du);
#else
        // As sm90_cotangents.cuh has it, which does the same: the bits are to be the same.
        short_gate_partials(gate[i], up[i], p.alpha, p.limit, dg, du);
#endif
        gate[i] = z[i] * dg;
        up[i] = z[i] * du;
    }
    bool whole_to = aligned<DTYPE>(p.to_gate.data, p.to_gate.stride) && aligned<DTYPE>(p.to_up.data, p.to_up.stride);
    i64 count_to = p.fills ? VECTOR : count;
    write<DTYPE>(element<DTYPE>(p.to_gate.data, row * p.to_gate.stride + column), gate, count_to, whole_to);
    write<DTYPE>(element<DTYPE>(p.to_up.data, row * p.to_up.stride + column), up, count_to, whole_to);
#endif
}

#elif PASS == ADD_BIAS

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ AddBiasParams p) {
    follow();
    i64 row, column;
    if (!place(p.rows, p.cols, row, column)) return;
    i64 count = p.cols - column;
    bool whole = aligned<DTYPE>(p.c.data, p.c.stride);
    void* c_at = element<DTYPE>(p.c.data, row * p.c.stride + column);

    float c[VECTOR], bias[VECTOR];
    read<DTYPE>(c, c_at, count, whole);
    read<DTYPE>(bias, element<DTYPE>(p.bias, column), count, aligned<DTYPE>(p.bias, 0));
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) c[i] += bias[i];
    write<DTYPE>(c_at, c, count, whole);
}

#elif PASS == REALIGN

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ RealignParams jobs) {
    follow();
    const RealignJob& p = job_of(jobs);
    i64 row, column;
    if (!place(p.rows, p.cols, row, column, blockIdx.x - static_cast<u32>(p.first_block))) return;
    Pack<DTYPE, VECTOR> pack;
    pack.load(element<DTYPE>(p.from.data, row * p.from.stride + column), p.cols - column, false);
    pack.store(element<DTYPE>(p.to.data, row * p.to.stride + column), VECTOR, true);
}

#elif PASS == GATHER

// A row that is not there is never read, and becomes NaN.
extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ GatherParams p) {
    follow();
    i64 row, column;
    if (!place(p.rows, p.cols, row, column)) return;
    i64 count = p.cols - column;
    bool whole = aligned<DTYPE>(p.from.data, p.from.stride) && aligned<DTYPE>(p.to.data, p.to.stride);
    void* to = element<DTYPE>(p.to.data, row * p.to.stride + column);
    i64 named = p.named[row * p.named_stride];
    if (named < p.from_rows) {
        Pack<DTYPE, VECTOR> pack;
        pack.load(element<DTYPE>(p.from.data, named * p.from.stride + column), count, whole);
        pack.store(to, count, whole);
    } else {
        float nan[VECTOR];
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) nan[i] = __int_as_float(0x7fffffff);
        write<DTYPE>(to, nan, count, whole);
    }
}

#elif PASS == SPLIT

// The nearest bf16; where that would be an infinity, which a finite v is not, the next towards zero.
__device__ __forceinline__ u16 to_part(float v) {
    u16 bits = Element<BF16>::narrow(v);
    return (bits & 0x7fff) == 0x7f80 ? static_cast<u16>(__float_as_uint(v) >> 16) : bits;
}

// v = parts[0] + 2^-7 parts[1] + 2^-16 parts[2], exactly: a part has 8 bits, and what it leaves is at most half of its
// last one. The scales hold the rests of small v up: the bits of the least part are multiples of 2^-133, as bf16 has it. No
// part is larger than half of v, but for the first: sums of their products overflow no sooner than those of v itself.
// The first part is 0 for no v but 0, so that an infinity times it is one; an infinity or a NaN has no others.
__device__ __forceinline__ void split_parts(float v, u16 (&parts)[3]) {
    u16 first = to_part(v);
    if ((first & 0x7fff) == 0 && v != 0.0f) first |= 1;
    float rest = v - Element<BF16>::widen(first);
    bool finite = (first & 0x7f80) != 0x7f80;
    u16 second = to_part(rest * 128.0f);
    rest -= Element<BF16>::widen(second) * (1.0f / 128);
    parts[0] = first;
    parts[1] = finite ? second : 0;
    parts[2] = finite ? to_part(rest * 65536.0f) : 0;
}

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ RealignParams jobs) {
    follow();
    const RealignJob& p = job_of(jobs);
    i64 row, column;
    // Boxes of 64 rows along k must end in zeros.
    i64 rows = (p.rows + 63) / 64 * 64;
    if (!place(rows, p.cols, row, column, blockIdx.x - static_cast<u32>(p.first_block))) return;
    i64 count = row < p.rows ? p.cols - column : 0;
    constexpr int HALF = 16 / sizeof(float);
    float values[2][HALF];
    const float* from = static_cast<const float*>(p.from.data) + row * p.from.stride + column;
    bool whole = aligned<F32>(p.from.data, p.from.stride);
    read<F32>(values[0], from, count, whole);
    read<F32>(values[1], from + HALF, count - HALF, whole);
    u32 words[3][HALF];
#pragma unroll
    for (int i = 0; i < VECTOR; i += 2) {
        u16 low[3], high[3];
        split_parts(values[i / HALF][i % HALF], low);
        split_parts(values[i / HALF][i % HALF + 1], high);
#pragma unroll
        for (int part = 0; part < 3; ++part) words[part][i / 2] = low[part] | static_cast<u32>(high[part]) << 16;
    }
#pragma unroll
    for (int part = 0; part < 3; ++part) {
        store_words(element<BF16>(p.to.data, (part * rows + row) * p.to.stride + column), words[part]);
    }
}

#elif PASS == ROUND

// f32 to tf32, to nearest and from the middle away from zero, as mma_gemm.cu has it: wgmma would cut the low bits off.
__device__ __forceinline__ float to_tf32(float value) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return __uint_as_float(bits);
}

// A block has 64 x 64 elements, and a thread 4 x 4 of them: four loads of 16 bytes are under way at once. It moves 2.8 TB/s
// on an H100, transposed or not; tiles of 128 rows, and tiles taken column by column, are as fast.
constexpr i64 EDGE = 64;
constexpr int SIDE = 4;
constexpr int ACROSS = EDGE / SIDE;
static_assert(ACROSS * ACROSS == THREADS, "every thread has one part of the tile");

// Where the 16 bytes `chunk` of a transposed tile's row are. 8 threads that write one chunk of every fourth row reach all
// banks, and so do 8 that read neighbours in one row.
__device__ __forceinline__ int turned(int row, int chunk) { return row * ACROSS + (chunk ^ (row / SIDE % 8)); }

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ RealignParams jobs) {
    follow();
    const RealignJob& p = job_of(jobs);
    u32 block = blockIdx.x - static_cast<u32>(p.first_block);
    u32 across = static_cast<u32>((p.cols + EDGE - 1) / EDGE);
    i64 row0 = block / across * EDGE;
    i64 column0 = block % across * EDGE;
    int x = threadIdx.x % ACROSS;
    int y = threadIdx.x / ACROSS;
    i64 row = row0 + SIDE * y;
    i64 column = column0 + SIDE * x;
    const float* from = static_cast<const float*>(p.from.data) + row * p.from.stride + column;
    bool whole = aligned<F32>(p.from.data, p.from.stride);
    float values[SIDE][SIDE];
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        read<F32>(values[i], from + i * p.from.stride, row + i < p.rows ? p.cols - column : 0, whole);
    }
    // Rows of `to` start at multiples of 16 bytes, and have room up to the next one.
    float* to = static_cast<float*>(p.to.data);
#if TRANSPOSED
    __shared__ float4 tile[EDGE * ACROSS];
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        tile[turned(SIDE * x + i, y)] = make_float4(to_tf32(values[0][i]), to_tf32(values[1][i]),
                                                    to_tf32(values[2][i]), to_tf32(values[3][i]));
    }
    __syncthreads();
    to += row0 + SIDE * x;
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        int down = y + ACROSS * i;
        if (row0 + SIDE * x < p.rows && column0 + down < p.cols) {
            *reinterpret_cast<float4*>(to + (column0 + down) * p.to.stride) = tile[turned(down, x)];
        }
    }
#else
    to += row * p.to.stride + column;
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        if (row + i < p.rows && column < p.cols) {
            *reinterpret_cast<float4*>(to + i * p.to.stride) =
                make_float4(to_tf32(values[i][0]), to_tf32(values[i][1]), to_tf32(values[i][2]), to_tf32(values[i][3]));
        }
    }
#endif
}

#elif PASS == PARTIAL_SUMS

// A thread has one column of one chunk of rows, and adds them in ascending order.
extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ ColumnSumsParams p) {
    follow();
    i64 blocks = (p.cols + THREADS - 1) / THREADS;
    i64 chunk = blockIdx.x / blocks;
    i64 column = (blockIdx.x - chunk * blocks) * THREADS + threadIdx.x;
    if (column >= p.cols) return;
    i64 first = chunk * p.rows_per_chunk;
    i64 end = min(first + p.rows_per_chunk, p.rows);
    float sum = 0.0f;
    auto from = static_cast<const Element<DTYPE>::Bits*>(p.a.data) + column;
    // Loads do not wait for one another, only the additions do.
#pragma unroll 8
    for (i64 row = first; row < end; ++row) sum += Element<DTYPE>::widen(from[row * p.a.stride]);
    p.partial[chunk * p.cols + column] = sum;
}

#elif PASS == COLUMN_SUMS

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_kernel(const __grid_constant__ ColumnSumsParams p) {
    follow();
    typedef Element<OUT_F32 ? F32 : DTYPE> Out;
    i64 column = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
    if (column >= p.cols) return;
    float sum = 0.0f;
#pragma unroll 8
    for (i64 chunk = 0; chunk < p.chunks; ++chunk) sum += p.partial[chunk * p.cols + column];
    Out::Bits& to = static_cast<Out::Bits*>(p.to)[column];
    if (p.add) sum += Out::widen(to);
    to = Out::narrow(sum);
}

#endif

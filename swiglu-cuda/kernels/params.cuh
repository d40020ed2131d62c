// Arguments of the kernels. src/params.rs has the same structs; each kernel's size is checked on both sides.
#pragma once
#include "types.cuh"

// A row-major matrix: its first element, and the number of elements from one row to the next.
struct Input {
    const void* data;
    i64 stride;
};

struct Output {
    void* data;
    i64 stride;
};

// C = A . B, m x k times k x n, in one of three products:
//
// STORE          c[i] = a[i] . b[i] for each i < gridDim.z; or, with two segments, c[0] = a[0] . b[0] + a[1] . b[1]. With
//                FORM_COTANGENTS a[0] and a[1] are pre-activations, and become dz * dh/dg and dz * dh/du before they
//                are multiplied.
// GATE           z = h(a[0] . b[0] + bias[0], a[0] . b[1] + bias[1]) into c[0]; both pre-activations into pre where
//                pre[0].data is not null.
// GATE_GRADIENT  the same pre-activations, and c[0] = dz * dh/dg, c[1] = dz * dh/du.
//
// With A_TRANS a matrix A is stored as k x m, with B_TRANS a matrix B is stored as n x k.
struct GemmParams {
    Input a[2];
    Input b[2];
    Output c[2];
    Output pre[2];
    Input dz;
    // 1 x n each, null for none.
    const void* bias[2];
    i64 m;
    i64 n;
    // Of one segment.
    i64 k;
    // Of the gate function.
    float alpha;
    float limit;
    u32 segments;
    // C += instead of C =; for STORE only.
    u32 add;
};
static_assert(sizeof(GemmParams) == 200, "src/params.rs has the same size");

// PRODUCT is one of these; the gate function is GATE_FUNCTION, in gate.cuh.
#define STORE 0
#define GATE 1
#define GATE_GRADIENT 2
// Sums are dz: pre-activations in memory become their cotangents.
#define COTANGENTS 3

// What cuTensorMapEncodeTiled makes: where a matrix is, and how a box of it lies in shared memory.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// A product by TMA: maps of the matrices in `gemm`. A map that is not used is zeros.
struct Sm90Params {
    TensorMap a[2];
    TensorMap b[2];
    TensorMap c[2];
    TensorMap pre[2];
    GemmParams gemm;
    // Independent products: c[i] = a[i] . b[i] for each, for STORE.
    u32 products;
    // Rows of tiles (or of clusters' pairs) that sweep n together, to share what they read in L2: the logarithm of their
    // number. Sums do not depend on it.
    u32 group_log2;
    // With FORM_COTANGENTS: zeros, as many as sm90_cotangents.cuh says.
    u32* progress;
};
static_assert(sizeof(Sm90Params) == 1280, "src/params.rs has the same size");

// Elementwise passes over [rows, cols] halves. Forward: z = h(gate, up). Backward: z is dz, and dz * dh/dg and
// dz * dh/du go to to_gate and to_up, which may be gate and up.
struct GateParams {
    Input gate;
    Input up;
    Output z;
    Output to_gate;
    Output to_up;
    i64 rows;
    i64 cols;
    float alpha;
    float limit;
    // Whether rows of to_gate and to_up have room up to the next multiple of 16 bytes, which becomes zeros.
    u32 fills;
    u32 unused;
};
static_assert(sizeof(GateParams) == 112, "src/params.rs has the same size");

// A copy to rows at multiples of 16 bytes, which end in zeros.
struct RealignJob {
    Input from;
    Output to;
    i64 rows;
    i64 cols;
    // Of the grid; beyond it where there is no such job.
    u64 first_block;
};

// Several matrices in one launch, in the order of their blocks.
struct RealignParams {
    RealignJob jobs[4];
};
static_assert(sizeof(RealignParams) == 224, "src/params.rs has the same size");

// to[i] = from[named[i * named_stride]], whose rows are `from_rows`.
struct GatherParams {
    Input from;
    Output to;
    const u32* named;
    i64 named_stride;
    i64 from_rows;
    i64 rows;
    i64 cols;
};
static_assert(sizeof(GatherParams) == 72, "src/params.rs has the same size");

// c[i][j] += bias[j].
struct AddBiasParams {
    const void* bias;
    Output c;
    i64 rows;
    i64 cols;
};
static_assert(sizeof(AddBiasParams) == 40, "src/params.rs has the same size");

// to[j] = or += the sum of a[i][j] over i. `partial` holds chunks x cols sums of up to `rows_per_chunk` rows each.
struct ColumnSumsParams {
    Input a;
    void* to;
    float* partial;
    i64 rows;
    i64 cols;
    i64 rows_per_chunk;
    i64 chunks;
    u32 add;
    u32 unused;
};
static_assert(sizeof(ColumnSumsParams) == 72, "src/params.rs has the same size");

// The mean cross-entropy of softmax(logits) against labels. `correct` and `dlogits.data` may be null. `row_loss` and
// `row_correct` hold one number for each row.
struct CrossEntropyParams {
    Input logits;
    Output dlogits;
    const u32* labels;
    i64 label_stride;
    float* loss;
    u32* correct;
    float* row_loss;
    u32* row_correct;
    i64 rows;
    i64 classes;
};
static_assert(sizeof(CrossEntropyParams) == 96, "src/params.rs has the same size");

// One step of AdamW on a [rows, cols] parameter. `ticket` is a zero that the kernel leaves as a zero.
struct AdamWParams {
    Input gradient;
    Output parameter;
    Output first;
    Output second;
    // f32 copy of a 16-bit parameter; null for f32.
    Output master;
    // Steps done so far; the kernel adds one.
    u32* steps;
    u32* ticket;
    i64 rows;
    i64 cols;
    float lr;
    float beta1;
    float beta2;
    float epsilon;
    float weight_decay;
    u32 unused;
};
static_assert(sizeof(AdamWParams) == 136, "src/params.rs has the same size");

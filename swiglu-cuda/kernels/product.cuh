// What a product reads and writes: types, and how many sums belong to one output. Used by kernels on tensor cores.
#pragma once
#include "params.cuh"

// Whether f32 operands are multiplied as tf32, which rounds them to 11 bits.
#ifndef TF32
#define TF32 0
#endif

#ifndef OUT_F32
#define OUT_F32 0
#endif

// Whether operands A are made of pre-activations first.
#ifndef FORM_COTANGENTS
#define FORM_COTANGENTS 0
#endif

static_assert(FORM_COTANGENTS == 0 || (PRODUCT == STORE && DTYPE != F32), "dX of 16-bit types");
static_assert(OUT_F32 == 0 || PRODUCT == STORE, "only STORE keeps its sums in f32");

typedef Element<DTYPE> In;
typedef Element<OUT_F32 ? F32 : DTYPE> Out;

// Products per output: gate and up side by side, in the same thread.
constexpr u32 kHalves = PRODUCT == GATE || PRODUCT == GATE_GRADIENT ? 2 : 1;

// From f32 sums in registers to C, pair by pair.
#pragma once
#include "gate.cuh"
#include "product.cuh"

// Two neighbours in a row. C_VECTOR says that each pair of the output starts where one access may reach both.
template <class Bits>
struct alignas(2 * sizeof(Bits)) Pair {
    Bits x;
    Bits y;
};

template <class Type>
__device__ __forceinline__ float2 load_pair(const void* data, i64 at, bool both) {
    typedef typename Type::Bits Bits;
    const Bits* from = static_cast<const Bits*>(data) + at;
    if (C_VECTOR && both) {
        Pair<Bits> pair = *reinterpret_cast<const Pair<Bits>*>(from);
        return {Type::widen(pair.x), Type::widen(pair.y)};
    }
    return {Type::widen(from[0]), both ? Type::widen(from[1]) : 0.0f};
}

template <class Type>
__device__ __forceinline__ void store_pair(void* data, i64 at, bool both, float x, float y) {
    typedef typename Type::Bits Bits;
    Bits* to = static_cast<Bits*>(data) + at;
    Pair<Bits> pair = {Type::narrow(x), Type::narrow(y)};
    if (C_VECTOR && both) {
        *reinterpret_cast<Pair<Bits>*>(to) = pair;
    } else {
        to[0] = pair.x;
        if (both) to[1] = pair.y;
    }
}

// bias[column] and its neighbour; zeros without a bias. A bias has DTYPE and any alignment.
__device__ __forceinline__ float2 load_bias(const void* bias, i64 column, bool both) {
    if (bias == nullptr) return {0.0f, 0.0f};
    const In::Bits* from = static_cast<const In::Bits*>(bias) + column;
    return {In::widen(from[0]), both ? In::widen(from[1]) : 0.0f};
}

// What is added to sums of product `product` first: nothing to those that are dz.
__device__ __forceinline__ float2 bias_of_sums(const GemmParams& p, u32 product, i64 column, bool both) {
#if PRODUCT == COTANGENTS
    return {0.0f, 0.0f};
#else
    return load_bias(p.bias[product], column, both);
#endif
}

#if PRODUCT == COTANGENTS
// dz becomes dG, and dU beside it. Saved pre-activations have their bias; those that were computed again get it here.
__device__ __forceinline__ void take_cotangents(const GemmParams& p, i64 row, i64 column, bool both, float2& dz,
                                                float2& dup) {
    float2 gate = load_pair<Out>(p.pre[0].data, row * p.pre[0].stride + column, both);
    float2 up = load_pair<Out>(p.pre[1].data, row * p.pre[1].stride + column, both);
    if (p.bias[0] != nullptr) {
        float2 of_gate = load_bias(p.bias[0], column, both);
        float2 of_up = load_bias(p.bias[1], column, both);
        gate = {gate.x + of_gate.x, gate.y + of_gate.y};
        up = {up.x + of_up.x, up.y + of_up.y};
    }
    float2 dg;
    gate_partials(gate.x, up.x, p.alpha, p.limit, dg.x, dup.x);
    gate_partials(gate.y, up.y, p.alpha, p.limit, dg.y, dup.y);
    dup = {dz.x * dup.x, dz.y * dup.y};
    dz = {dz.x * dg.x, dz.y * dg.y};
}
#endif

// Columns `column` and, where `both`, column + 1 of one row. `product` is the number of C, of several.
__device__ __forceinline__ void finish(const GemmParams& p, u32 product, i64 row, i64 column, bool both,
                                       const float2 (&sums)[kHalves]) {
#if PRODUCT == STORE
    float2 sum = sums[0];
    const Output& c = p.c[product];
    i64 at = row * c.stride + column;
    if (p.add) {
        float2 old = load_pair<Out>(c.data, at, both);
        sum = {old.x + sum.x, old.y + sum.y};
    }
    store_pair<Out>(c.data, at, both, sum.x, sum.y);
#elif PRODUCT == COTANGENTS
    float2 dgate = sums[0];
    float2 dup;
    take_cotangents(p, row, column, both, dgate, dup);
    store_pair<Out>(p.c[0].data, row * p.c[0].stride + column, both, dgate.x, dgate.y);
    store_pair<Out>(p.c[1].data, row * p.c[1].stride + column, both, dup.x, dup.y);
#else
    float2 gate = sums[0];
    float2 up = sums[1];
    if (p.pre[0].data != nullptr) {
        store_pair<Out>(p.pre[0].data, row * p.pre[0].stride + column, both, gate.x, gate.y);
        store_pair<Out>(p.pre[1].data, row * p.pre[1].stride + column, both, up.x, up.y);
    }
#if PRODUCT == GATE
    float x = gate_value(gate.x, up.x, p.alpha, p.limit);
    float y = gate_value(gate.y, up.y, p.alpha, p.limit);
    store_pair<Out>(p.c[0].data, row * p.c[0].stride + column, both, x, y);
#else
    float2 dz = load_pair<In>(p.dz.data, row * p.dz.stride + column, both);
    float2 dgate;
    float2 dup;
    gate_partials(gate.x, up.x, p.alpha, p.limit, dgate.x, dup.x);
    gate_partials(gate.y, up.y, p.alpha, p.limit, dgate.y, dup.y);
    store_pair<Out>(p.c[0].data, row * p.c[0].stride + column, both, dz.x * dgate.x, dz.y * dgate.y);
    store_pair<Out>(p.c[1].data, row * p.c[1].stride + column, both, dz.x * dup.x, dz.y * dup.y);
#endif
#endif
}

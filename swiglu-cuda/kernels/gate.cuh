// Gate functions h(g, u) and their partial derivatives: the same formulas and special values as swiglu-core/src/gate.
//
// The compiler may contract a * b + c here: each such place is a range reduction, a polynomial or a correction in which
// the unrounded product only makes the result more exact, and where the product is exact nothing changes. Subnormal
// results need --ftz=false.
#pragma once
#include "types.cuh"

#define SWIGLU 0
#define GEGLU_TANH 1
#define GEGLU_ERF 2
#define REGLU 3
#define GLU 4
#define SWIGLU_CLAMPED 5

// One of the above. GATE alone is a product, in params.cuh.
#ifndef GATE_FUNCTION
#define GATE_FUNCTION SWIGLU
#endif

// Below this argument sigma(v) * x is zero for every finite f32 x: e^-174 is 2^-251. Further down the result is defined
// as a signed zero.
constexpr float LOWEST = -174.0f;

// 2^n for -126 <= n <= 127.
__device__ __forceinline__ float power_of_two(i32 n) { return __uint_as_float(static_cast<u32>(n + 127) << 23); }

// v * 2^n for -252 <= n <= 127, rounded once: the first step stays normal, only the second can become subnormal.
__device__ __forceinline__ float scale(float v, i32 n) {
    i32 half = n >> 1;
    return v * power_of_two(half) * power_of_two(n - half);
}

// (1 + m) * 2^n, with m in [-0.3, 0.42]. The 1 is left out of m so that a product with e^v takes over an error of at
// most 0.42 times that of m, and is not rounded to a whole 1 + m first.
struct Exponential {
    float m;
    i32 n;

    // e^v for v <= 0; a NaN stays NaN in m, and v below LOWEST counts as LOWEST. Range reduction v = n ln 2 + r with
    // ln 2 in two parts (Cody and Waite), then the degree-6 polynomial of Cephes' expf on |r| <= ln(2)/2.
    static __device__ __forceinline__ Exponential of(float v) {
        // Adding 1.5 * 2^23 rounds to an integer, to nearest even, and leaves that integer in the low mantissa bits.
        constexpr float MAGIC = 12582912.0f;
        constexpr float LOG2_E = 1.44269504f;
        // 15 bits of ln 2, so that n * LN2_HIGH is exact for |n| < 2^9; and the rest.
        constexpr float LN2_HIGH = 0.69314575f;
        constexpr float LN2_LOW = 1.4286068e-6f;
        v = v < LOWEST ? LOWEST : v;
        float shifted = v * LOG2_E + MAGIC;
        i32 n = __float_as_int(shifted) - __float_as_int(MAGIC);
        float whole = shifted - MAGIC;
        float r = (v - whole * LN2_HIGH) - whole * LN2_LOW;
        float q = 1.9875691e-4f;
        q = q * r + 1.3981999e-3f;
        q = q * r + 8.333452e-3f;
        q = q * r + 4.1665796e-2f;
        q = q * r + 1.6666665e-1f;
        q = q * r + 5.0e-1f;
        return {r + (r * r) * q, n};
    }

    // factor * (1 + m): what is left to scale by 2^n.
    __device__ __forceinline__ float times(float factor) const { return factor + factor * m; }

    // e^v itself, or the smallest normal power of two where it is less: a summand of 1.
    __device__ __forceinline__ float beside_one() const { return (1.0f + m) * power_of_two(n < -126 ? -126 : n); }
};

// factor * e^v for v <= 0, with subnormal results rounded once.
__device__ __forceinline__ float exp_negative(float v, float factor) {
    Exponential e = Exponential::of(v);
    return scale(e.times(factor), e.n);
}

// 1 / d for d in [1, 2] or NaN, correctly rounded: one Newton step, without the branch that a division has for its
// subnormal operands.
__device__ __forceinline__ float reciprocal(float d) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return fmaf(fmaf(-d, r, 1.0f), r, r);
}

// The logistic function sigma(v) = 1 / (1 + e^-v), in pieces that keep its relative accuracy on both tails.
//
// With t = e^-|v| and r = 1 / (1 + t): sigma is r on the right and t * r on the left, 1 - sigma the other way round.
struct Logistic {
    float v;
    Exponential e;
    float r;

    static __device__ __forceinline__ Logistic of(float v) {
        Exponential e = Exponential::of(-fabsf(v));
        return {v, e, reciprocal(1.0f + e.beside_one())};
    }

    // `right` where v >= 0 and t * left where v < 0, scaled at the very end. A NaN v has made r, and so `right`, NaN.
    __device__ __forceinline__ float finish(float right, float left) const {
        bool negative = v < 0.0f;
        float p = negative ? e.times(left) : right;
        i32 n = negative ? e.n : 0;
        return scale(p, n);
    }

    // x * sigma(v), for an x of the sign of v or none: the limit -0 where v is far to the left, even for x = -inf.
    __device__ __forceinline__ float times(float x) const {
        // Scaled by 2^-251 even 1 becomes a zero, and keeps its sign through Exponential::times, where -0 would not.
        x = v < LOWEST ? copysignf(1.0f, x) : x;
        float xr = x * r;
        return finish(xr, xr);
    }

    // sigma(v).
    __device__ __forceinline__ float value() const { return finish(r, r); }

    // sigma'(v) = sigma(v) * (1 - sigma(v)) = t * r^2 on both sides.
    __device__ __forceinline__ float slope() const { return scale(e.times(r * r), e.n); }

    // d(x sigma(v))/dx = sigma(v) + c * sigma'(v), where c is x * dv/dx.
    __device__ __forceinline__ float slope_of_product(float c) const {
        // Only an infinite c, which would give NaN, needs the clamp: with v above LOWEST, |c| is at most 3 |v|, that of
        // the cubic argument of GELU.
        constexpr float FINITE = 1e4f;
        c = c < -FINITE ? -FINITE : c;
        c = c > FINITE ? FINITE : c;
        float right = r * (1.0f + c * e.beside_one() * r);
        float left = r * (1.0f + c * r);
        return finish(right, left);
    }
};

#if GATE_FUNCTION == SWIGLU

// silu(g) * u.
__device__ __forceinline__ float gate_value(float g, float u, float, float) { return Logistic::of(g).times(g) * u; }

__device__ __forceinline__ void gate_partials(float g, float u, float, float, float& dg, float& du) {
    Logistic s = Logistic::of(g);
    dg = u * s.slope_of_product(g);
    du = s.times(g);
}

#elif GATE_FUNCTION == GEGLU_TANH

// gelu(g) * u, tanh form: (1 + tanh(y)) / 2 = sigmoid(2y) with y = sqrt(2/pi) (g + 0.044715 g^3). 2y and g * d(2y)/dg.
__device__ __forceinline__ void tanh_argument(float g, float& v, float& c) {
    constexpr float SLOPE = 1.5957692f;  // 2 sqrt(2/pi)
    constexpr float CUBIC = 0.044715f;
    float square = g * g;
    float scaled = SLOPE * g;
    v = scaled * (1.0f + CUBIC * square);
    c = scaled * (1.0f + 3.0f * CUBIC * square);
}

__device__ __forceinline__ float gate_value(float g, float u, float, float) {
    float v, c;
    tanh_argument(g, v, c);
    return Logistic::of(v).times(g) * u;
}

__device__ __forceinline__ void gate_partials(float g, float u, float, float, float& dg, float& du) {
    float v, c;
    tanh_argument(g, v, c);
    Logistic s = Logistic::of(v);
    dg = u * s.slope_of_product(c);
    du = s.times(g);
}

#elif GATE_FUNCTION == GEGLU_ERF

// gelu(g) * u, exact: g * Phi(g) with Phi(g) = erfc(-g / sqrt 2) / 2. Past END on both sides Phi is 0 or 1 and its
// density 0 in f32, and products with g need no infinity.
constexpr float END = 174.0f;

__device__ __forceinline__ float clamp_left(float g) { return g < -END ? -END : g; }

__device__ __forceinline__ float phi(float g) { return 0.5f * erfcf(-g * 0.70710678f); }

__device__ __forceinline__ float gate_value(float g, float u, float, float) { return (clamp_left(g) * phi(g)) * u; }

__device__ __forceinline__ void gate_partials(float g, float u, float, float, float& dg, float& du) {
    constexpr float DENSITY = 0.3989423f;  // 1 / sqrt(2 pi)
    float p = phi(g);
    float left = clamp_left(g);
    float c = left > END ? END : left;
    dg = u * (p + exp_negative(-0.5f * c * c, c * DENSITY));
    du = left * p;
}

#elif GATE_FUNCTION == REGLU

// relu(g) * u, with derivative 0 at 0. Written so that a NaN passes.
__device__ __forceinline__ float gate_value(float g, float u, float, float) { return (g <= 0.0f ? 0.0f : g) * u; }

__device__ __forceinline__ void gate_partials(float g, float u, float, float, float& dg, float& du) {
    float slope = g <= 0.0f ? 0.0f : 1.0f;
    slope = g != g ? g : slope;
    dg = u * slope;
    du = g <= 0.0f ? 0.0f : g;
}

#elif GATE_FUNCTION == GLU

// sigmoid(g) * u.
__device__ __forceinline__ float gate_value(float g, float u, float, float) { return Logistic::of(g).value() * u; }

__device__ __forceinline__ void gate_partials(float g, float u, float, float, float& dg, float& du) {
    Logistic s = Logistic::of(g);
    dg = u * s.slope();
    du = s.value();
}

#elif GATE_FUNCTION == SWIGLU_CLAMPED

// The variant of gpt-oss: g' * sigmoid(alpha * g') * (u' + 1) with g' = min(g, limit), u' = clamp(u, -limit, limit).
__device__ __forceinline__ float clamp_up(float u, float limit) {
    u = u > limit ? limit : u;
    return u < -limit ? -limit : u;
}

__device__ __forceinline__ float gate_value(float g, float u, float alpha, float limit) {
    g = g > limit ? limit : g;
    return Logistic::of(alpha * g).times(g) * (clamp_up(u, limit) + 1.0f);
}

__device__ __forceinline__ void gate_partials(float g, float u, float alpha, float limit, float& dg, float& du) {
    float gate = g > limit ? limit : g;
    float v = alpha * gate;
    Logistic s = Logistic::of(v);
    dg = (clamp_up(u, limit) + 1.0f) * s.slope_of_product(v);
    du = s.times(gate);
    dg = g > limit ? 0.0f : dg;
    du = fabsf(u) > limit ? 0.0f : du;
}

#endif

// The gate functions once more, for results of 16 bits: with the exponential of the special function units, where its
// range suffices, and exact enough there to be rounded like gate_value but in a few cases out of a million.

#if GATE_FUNCTION == SWIGLU || GATE_FUNCTION == GLU
// What sigma is taken of.
__device__ __forceinline__ float gate_argument(float g, float, float) { return g; }
#elif GATE_FUNCTION == GEGLU_TANH
__device__ __forceinline__ float gate_argument(float g, float, float) {
    float v, c;
    tanh_argument(g, v, c);
    return v;
}
#elif GATE_FUNCTION == SWIGLU_CLAMPED
__device__ __forceinline__ float gate_argument(float g, float alpha, float limit) {
    return alpha * (g > limit ? limit : g);
}
#else
__device__ __forceinline__ float gate_argument(float, float, float) { return 0.0f; }
#endif

// e^80 and its reciprocal are normal numbers. A NaN is not tame.
__device__ __forceinline__ bool is_tame(float v) { return fabsf(v) <= 80.0f; }

// The logistic function where v is tame: t = e^-v, and r = sigma(v) = 1 / (1 + t), so that 1 - sigma is t * r. v * log2(e)
// is rounded to f32 for ex2, and what that cuts off is multiplied to the result.
struct TameLogistic {
    float t;
    float r;

    static __device__ __forceinline__ TameLogistic of(float v) {
        constexpr float LOG2_E = 1.44269504f;
        constexpr float LN2 = 0.69314718f;
        float y = v * -LOG2_E;
        float rest = fmaf(y, -LN2, -v);
        float t, r;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(y));
        t = fmaf(t, rest, t);
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + t));
        return {t, r};
    }

    // sigma'(v).
    __device__ __forceinline__ float slope() const { return t * r * r; }

    // As Logistic::slope_of_product.
    __device__ __forceinline__ float slope_of_product(float c) const { return r * (1.0f + c * (t * r)); }
};

// h(g, u) where gate_argument(g) is tame.
__device__ __forceinline__ float tame_gate_value(float g, float u, float alpha, float limit) {
#if GATE_FUNCTION == SWIGLU || GATE_FUNCTION == GEGLU_TANH
    return g * TameLogistic::of(gate_argument(g, alpha, limit)).r * u;
#elif GATE_FUNCTION == GLU
    return TameLogistic::of(g).r * u;
#elif GATE_FUNCTION == SWIGLU_CLAMPED
    float gate = g > limit ? limit : g;
    return gate * TameLogistic::of(alpha * gate).r * (clamp_up(u, limit) + 1.0f);
#else
    return gate_value(g, u, alpha, limit);
#endif
}

// dh/dg and dh/du where gate_argument(g) is tame.
__device__ __forceinline__ void tame_gate_partials(float g, float u, float alpha, float limit, float& dg, float& du) {
#if GATE_FUNCTION == SWIGLU
    TameLogistic s = TameLogistic::of(g);
    dg = u * s.slope_of_product(g);
    du = g * s.r;
#elif GATE_FUNCTION == GEGLU_TANH
    float v, c;
    tanh_argument(g, v, c);
    TameLogistic s = TameLogistic::of(v);
    dg = u * s.slope_of_product(c);
    du = g * s.r;
#elif GATE_FUNCTION == GLU
    TameLogistic s = TameLogistic::of(g);
    dg = u * s.slope();
    du = s.r;
#elif GATE_FUNCTION == SWIGLU_CLAMPED
    float gate = g > limit ? limit : g;
    float v = alpha * gate;
    TameLogistic s = TameLogistic::of(v);
    dg = (clamp_up(u, limit) + 1.0f) * s.slope_of_product(v);
    du = gate * s.r;
    dg = g > limit ? 0.0f : dg;
    du = fabsf(u) > limit ? 0.0f : du;
#else
    gate_partials(g, u, alpha, limit, dg, du);
#endif
}

// dh/dg and dh/du, for results of 16 bits.
__device__ __forceinline__ void short_gate_partials(float g, float u, float alpha, float limit, float& dg, float& du) {
    if (is_tame(gate_argument(g, alpha, limit))) {
        tame_gate_partials(g, u, alpha, limit, dg, du);
    } else {
        gate_partials(g, u, alpha, limit, dg, du);
    }
}

// Consecutive elements of a matrix row, moved in one access where alignment and the row's end allow it.
#pragma once
#include "types.cuh"

// Accesses of 4, 8 and 16 bytes.
__device__ __forceinline__ void load_words(u32 (&to)[1], const void* from) { to[0] = *static_cast<const u32*>(from); }

__device__ __forceinline__ void load_words(u32 (&to)[2], const void* from) {
    uint2 v = *static_cast<const uint2*>(from);
    to[0] = v.x, to[1] = v.y;
}

__device__ __forceinline__ void load_words(u32 (&to)[4], const void* from) {
    uint4 v = *static_cast<const uint4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

__device__ __forceinline__ void store_words(void* to, const u32 (&from)[1]) { *static_cast<u32*>(to) = from[0]; }

__device__ __forceinline__ void store_words(void* to, const u32 (&from)[2]) {
    *static_cast<uint2*>(to) = make_uint2(from[0], from[1]);
}

__device__ __forceinline__ void store_words(void* to, const u32 (&from)[4]) {
    *static_cast<uint4*>(to) = make_uint4(from[0], from[1], from[2], from[3]);
}

// An element's bits as a word, and back.
__device__ __forceinline__ u32 to_word(float bits) { return __float_as_uint(bits); }
__device__ __forceinline__ u32 to_word(u16 bits) { return bits; }
__device__ __forceinline__ void from_word(u32 word, float& bits) { bits = __uint_as_float(word); }
__device__ __forceinline__ void from_word(u32 word, u16& bits) { bits = static_cast<u16>(word); }

// `width` elements of at most 16 bytes together, as they are in memory: a register is as good as full.
template <int dtype, int width>
struct Pack {
    typedef typename Element<dtype>::Bits Bits;
    static constexpr int PER_WORD = width == 1 ? 1 : 4 / sizeof(Bits);
    static constexpr int SHIFT = 32 / PER_WORD;

    u32 words[width / PER_WORD];

    // The first `count` elements at `from`, zeros after them. Only with `whole`, which needs an address aligned to the
    // pack, in one access.
    __device__ __forceinline__ void load(const void* from, i64 count, bool whole) {
        if (width > 1 && whole && count >= width) {
            load_words(words, from);
            return;
        }
#pragma unroll
        for (int i = 0; i < width; ++i) {
            set(i, i < count ? static_cast<const Bits*>(from)[i] : Bits(0));
        }
    }

    // The first `count` elements to `to`.
    __device__ __forceinline__ void store(void* to, i64 count, bool whole) const {
        if (width > 1 && whole && count >= width) {
            store_words(to, words);
            return;
        }
#pragma unroll
        for (int i = 0; i < width; ++i) {
            if (i < count) from_word(words[i / PER_WORD] >> (SHIFT * (i % PER_WORD)), static_cast<Bits*>(to)[i]);
        }
    }

    __device__ __forceinline__ float widened(int i) const {
        Bits bits;
        from_word(words[i / PER_WORD] >> (SHIFT * (i % PER_WORD)), bits);
        return Element<dtype>::widen(bits);
    }

    __device__ __forceinline__ void narrow(int i, float value) { set(i, Element<dtype>::narrow(value)); }

  private:
    // In ascending order of i: the first element of a word clears the others.
    __device__ __forceinline__ void set(int i, Bits bits) {
        u32 word = to_word(bits);
        words[i / PER_WORD] = i % PER_WORD == 0 ? word : words[i / PER_WORD] | word << (SHIFT * (i % PER_WORD));
    }
};

// The address of an element.
template <int dtype>
__device__ __forceinline__ const void* element(const void* data, i64 index) {
    return static_cast<const typename Element<dtype>::Bits*>(data) + index;
}

template <int dtype>
__device__ __forceinline__ void* element(void* data, i64 index) {
    return static_cast<typename Element<dtype>::Bits*>(data) + index;
}

// `width` elements, widened; zeros from the `count`-th on.
template <int dtype, int width>
__device__ __forceinline__ void read(float (&to)[width], const void* from, i64 count, bool whole) {
    Pack<dtype, width> pack;
    pack.load(from, count, whole);
#pragma unroll
    for (int i = 0; i < width; ++i) to[i] = pack.widened(i);
}

// The first `count` of `width` values, narrowed.
template <int dtype, int width>
__device__ __forceinline__ void write(void* to, const float (&from)[width], i64 count, bool whole) {
    Pack<dtype, width> pack;
#pragma unroll
    for (int i = 0; i < width; ++i) pack.narrow(i, from[i]);
    pack.store(to, count, whole);
}

// Whether a matrix allows 16-byte accesses at every multiple of 16 bytes in its rows.
template <int dtype>
__device__ __forceinline__ bool aligned(const void* data, i64 stride) {
    return ((reinterpret_cast<u64>(data) | static_cast<u64>(stride) * sizeof(typename Element<dtype>::Bits)) & 15) == 0;
}

// Two floats of neighbouring columns as 16-bit elements, the first in the low half.
__device__ __forceinline__ u32 narrow_pair(float first, float second) {
    u32 word;
#if DTYPE == F16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
#endif
    return word;
}

// Vectors of one register, for every instruction set: GCC's vector types. Number formats are float and bfloat16.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8;  // lanes of float32; rows whose sums fit into registers
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;
#else
constexpr int LANES = 4, ROWS = 4;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

struct BFloat16 { uint16_t bits; };

inline Vector load(const float* from) { Vector v; std::memcpy(&v, from, sizeof v); return v; }
inline Vector load(const BFloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Vector)(__builtin_convertvector(halves, Words) << 16);
}
inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }
inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { uint32_t w = uint32_t(x.bits) << 16; float f; std::memcpy(&f, &w, 4); return f; }
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, BFloat16* to) {  // round to nearest even
  uint32_t w;
  std::memcpy(&w, &x, 4);
  to->bits = std::isnan(x) ? 0x7FC0 : uint16_t((w + 0x7FFF + ((w >> 16) & 1)) >> 16);
}
inline void store(BFloat16* to, Vector v) {  // round to nearest even
  const Words w = (Words)v;
  const Words rounded = (w + 0x7FFF + ((w >> 16) & 1)) >> 16;
  const Halves halves = __builtin_convertvector(v == v ? rounded : Words{} + 0x7FC0, Halves);
  std::memcpy(to, &halves, sizeof halves);
}
inline Vector spread(float x) { return x - Vector{}; }

}  // namespace

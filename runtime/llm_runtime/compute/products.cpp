// Matrix products of a step's rows on a CPU, y = x W' + b, for layers that read the same x in one call. With few rows a
// product takes as long as reading its weights, so each weight is read once, in the order in which it lies in memory.
//
// Weights lie in blocks of 16 outputs: each lane of a vector is an output, and nothing is summed across a vector. A
// thread takes neighbouring blocks, and the same ones at each step. Blocks are padded with zeros, an odd number of
// inputs, too. The order of a block's numbers is
//   float32   [inputs][16]
//   bfloat16  [inputs / 2][16][2]
//   int8      [inputs / 4][16][4], with 128 added, so that a byte is not negative
//
// int8 multiplies integers. Each row of x is quantised by itself, in groups of 64 inputs with a scale each: so no row
// depends on its neighbours, and one large input costs precision in its group only.

#include <algorithm>
#include <memory>
#include <type_traits>

#include "vectors.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int BLOCK = 16;                        // outputs of a block
constexpr int PARTS = BLOCK / LANES;             // vectors of a block
constexpr int BLOCKS = LANES == 16 ? 2 : 1;      // blocks whose sums of ROWS rows fit into registers
constexpr int GROUP = 64;                        // inputs that share a scale in a quantised row
constexpr int FEW = 1 << 16;                     // so few multiplications are done before another thread has woken
constexpr int WIDEN_ROWS = 2 * ROWS;             // beyond, bfloat16 weights are widened once for all rows

typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint8_t Fours __attribute__((vector_size(LANES * 4)));

inline Ints spread(int32_t x) { return x - Ints{}; }
template <typename V> inline V read(const void* from) { V v; std::memcpy(&v, from, sizeof v); return v; }

inline int64_t padded(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// The sums of R rows and B blocks. S sums of neighbouring inputs are kept apart where there is room, as each waits for
// the one before.
template <int S, int R, int B>
struct Sums {
  Vector at[S][R][B][PARTS] = {};
  Vector total(int r, int b, int p) const { return S == 2 ? at[0][r][b][p] + at[S - 1][r][b][p] : at[0][r][b][p]; }
};

template <int R, int B>
constexpr int APART = R * B * PARTS <= ROWS ? 2 : 1;

// The weights of two neighbouring inputs, for the outputs of one vector.
inline void load_two(const float* block, int64_t input, int part, Vector& first, Vector& second) {
  first = load(block + input * BLOCK + part * LANES);
  second = load(block + (input + 1) * BLOCK + part * LANES);
}
inline void load_two(const BFloat16* block, int64_t input, int part, Vector& first, Vector& second) {
  const Words both = read<Words>(block + input * BLOCK + part * LANES * 2);
  first = (Vector)(both << 16);
  second = (Vector)(both & 0xFFFF0000u);
}

// Rows of x are `stride` numbers apart.
template <typename W, int R, int B, int S>
inline void multiply(const float* x, int64_t stride, int64_t inputs, const W* weight, Sums<S, R, B>& sums) {
  const int64_t block = padded(inputs, 2) * BLOCK;
  for (int64_t k = 0; k + 2 <= inputs; k += 2) {
    Vector first[B][PARTS], second[B][PARTS];
    for (int b = 0; b < B; ++b)
      for (int p = 0; p < PARTS; ++p) load_two(weight + b * block, k, p, first[b][p], second[b][p]);
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b)
        for (int p = 0; p < PARTS; ++p) {
          sums.at[0][r][b][p] += first[b][p] * x[r * stride + k];
          sums.at[S - 1][r][b][p] += second[b][p] * x[r * stride + k + 1];
        }
  }
  if (inputs % 2)
    for (int b = 0; b < B; ++b)
      for (int p = 0; p < PARTS; ++p) {
        Vector first, second;
        load_two(weight + b * block, inputs - 1, p, first, second);
        for (int r = 0; r < R; ++r) sums.at[0][r][b][p] += first * x[r * stride + inputs - 1];
      }
}

// sum[i] += the four weights of output i times the four inputs that each 32 bits of x hold. Weights come with WEIGHT_ZERO
// added, which the caller takes off again: it starts from the sum of the inputs.
#if defined(__AVX512VNNI__)
constexpr int WEIGHT_ZERO = 128;
inline Ints dot(Ints sum, Fours weights, Ints x) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)x);
}
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
constexpr int WEIGHT_ZERO = 128;
inline Ints dot(Ints sum, Fours weights, Ints x) {
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, (__m256i)x);
}
#elif defined(__AVX512BW__)
// |w| times x with the sign of w: the sum of two products of 127 fits into 16 bits, which that of 255 does not.
constexpr int WEIGHT_ZERO = 0;
inline Ints dot(Ints sum, Fours weights, Ints x) {
  const __m512i w = _mm512_xor_si512((__m512i)weights, _mm512_set1_epi8(-128));
  const __m512i turned = _mm512_mask_sub_epi8((__m512i)x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), (__m512i)x);
  const __m512i twos = _mm512_maddubs_epi16(_mm512_abs_epi8(w), turned);
  return sum + (Ints)_mm512_madd_epi16(twos, _mm512_set1_epi16(1));
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
constexpr int WEIGHT_ZERO = 0;
inline Ints dot(Ints sum, Fours weights, Ints x) {
  const __m256i w = _mm256_xor_si256((__m256i)weights, _mm256_set1_epi8(-128));
  const __m256i twos = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8((__m256i)x, w));
  return sum + (Ints)_mm256_madd_epi16(twos, _mm256_set1_epi16(1));
}
#else
constexpr int WEIGHT_ZERO = 128;
inline Ints dot(Ints sum, Fours weights, Ints x) {
  // Byte n of each four, widened: those of x with their sign.
  for (int n = 0; n < 4; ++n) {
    const Ints w = (Ints)(((Words)weights >> (8 * n)) & 0xFFu);
    sum += w * ((x << (24 - 8 * n)) >> 24);
  }
  return sum;
}
#endif

// Rows of x as integers of 8 bits. An integer times its group's scale is the input.
struct Quantised {
  const int8_t* x;        // [rows, groups * GROUP], zeros at the end
  const float* scales;    // [rows, groups]; NaN where the group holds a number that is not finite
  const int32_t* starts;  // [rows, groups]: what a sum starts from, which takes WEIGHT_ZERO off the weights
  int64_t groups;
};

template <typename T>
void quantise(const T* x, int64_t inputs, int8_t* to, float* scales, int32_t* starts) {
  for (int64_t first = 0, group = 0; first < inputs; first += GROUP, ++group) {
    float part[GROUP] = {};
    const int64_t count = std::min<int64_t>(GROUP, inputs - first);
    for (int64_t i = 0; i < count; ++i) part[i] = widen(x[first + i]);
    Vector tops = {}, faults = {};
    for (int i = 0; i < GROUP; i += LANES) {
      const Vector v = load(part + i), magnitude = v < 0 ? -v : v;
      tops = magnitude > tops ? magnitude : tops;
      faults += v * 0.0f;  // 0, or NaN
    }
    float top = 0, fault = 0;
    for (int j = 0; j < LANES; ++j) top = std::max(top, tops[j]), fault += faults[j];
    const float inverse = top > 1e-30f ? 127 / top : 0;
    Ints sum = {};
    for (int i = 0; i < GROUP; i += LANES) {
      // 1.5 * 2^23: the sum has the nearest integer in its lowest bits.
      const Ints q = ((Ints)(load(part + i) * inverse + 12582912.0f) << 24) >> 24;
      sum += q;
      const Bytes bytes = __builtin_convertvector(q, Bytes);
      std::memcpy(to + first + i, &bytes, sizeof bytes);
    }
    int32_t whole = 0;
    for (int j = 0; j < LANES; ++j) whole += sum[j];
    scales[group] = inverse * top > 0 ? top / 127 + fault : fault;
    starts[group] = -WEIGHT_ZERO * whole;
  }
}

template <int R, int B>
inline void multiply(const Quantised& rows, int64_t row, int64_t inputs, const uint8_t* weight, Sums<1, R, B>& sums) {
  const int64_t fours = padded(inputs, 4), block = fours * BLOCK, stride = rows.groups * GROUP;
  const int8_t* x = rows.x + row * stride;
  for (int64_t group = 0; group < rows.groups; ++group) {
    Ints whole[R][B][PARTS];
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b)
        for (int p = 0; p < PARTS; ++p) whole[r][b][p] = spread(rows.starts[(row + r) * rows.groups + group]);
    const int64_t end = std::min(fours, (group + 1) * GROUP);
    for (int64_t k = group * GROUP; k < end; k += 4) {
      Fours weights[B][PARTS];
      for (int b = 0; b < B; ++b)
        for (int p = 0; p < PARTS; ++p) weights[b][p] = read<Fours>(weight + b * block + k * BLOCK + p * LANES * 4);
      for (int r = 0; r < R; ++r) {
        const Ints four = spread(read<int32_t>(x + r * stride + k));
        for (int b = 0; b < B; ++b)
          for (int p = 0; p < PARTS; ++p) whole[r][b][p] = dot(whole[r][b][p], weights[b][p], four);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b)
        for (int p = 0; p < PARTS; ++p)
          sums.at[0][r][b][p] += __builtin_convertvector(whole[r][b][p], Vector) * rows.scales[(row + r) * rows.groups + group];
  }
}

}  // namespace

// A linear layer. `scales` [outputs] belong to int8 weights, `bias` may be null; both are padded like the outputs.
struct Layer {
  const void* weight;
  const float *scales, *bias;
  int64_t outputs;
};

extern "C" int llm_product_outputs() { return BLOCK * BLOCKS; }  // Layers are padded to a multiple of it.

namespace {

template <int R, typename S, typename T>
void finish(const Layer& layer, const S& sums, int64_t first, T* out) {
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < BLOCKS; ++b)
      for (int p = 0; p < PARTS; ++p) {
        const int64_t n = first + b * BLOCK + p * LANES;
        Vector v = sums.total(r, b, p);
        if (layer.scales) v *= load(layer.scales + n);
        if (layer.bias) v += load(layer.bias + n);
        T* to = out + r * layer.outputs + n;
        if (n + LANES <= layer.outputs) store(to, v);
        else for (int64_t j = 0; n + j < layer.outputs; ++j) narrow(v[j], to + j);
      }
}

// BLOCKS blocks from output `first` on, for R rows from `row` on.
template <int R, typename W, typename T>
void tile(const float* x, int64_t row, int64_t inputs, const W* weight, const Layer& layer, int64_t first, T* out) {
  Sums<APART<R, BLOCKS>, R, BLOCKS> sums;
  multiply(x + row * inputs, inputs, inputs, weight, sums);
  finish<R>(layer, sums, first, out + row * layer.outputs);
}
template <int R, typename T>
void tile(const Quantised& x, int64_t row, int64_t inputs, const uint8_t* weight, const Layer& layer, int64_t first,
          T* out) {
  Sums<1, R, BLOCKS> sums;
  multiply(x, row, inputs, weight, sums);
  finish<R>(layer, sums, first, out + row * layer.outputs);
}

template <typename X, typename W, typename T>
void tiles(const X& x, int64_t rows, int64_t inputs, const W* weight, const Layer& layer, int64_t first, T* out) {
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS) tile<ROWS>(x, row, inputs, weight, layer, first, out);
  switch (rows - row) {
    case 1: return tile<1>(x, row, inputs, weight, layer, first, out);
    case 2: return tile<2>(x, row, inputs, weight, layer, first, out);
    case 3: return tile<3>(x, row, inputs, weight, layer, first, out);
#if defined(__AVX512F__)
    case 4: return tile<4>(x, row, inputs, weight, layer, first, out);
    case 5: return tile<5>(x, row, inputs, weight, layer, first, out);
    case 6: return tile<6>(x, row, inputs, weight, layer, first, out);
    case 7: return tile<7>(x, row, inputs, weight, layer, first, out);
#endif
  }
}

// What one thread does: `first` outputs of every layer in turn, all rows of each while its weights are in the cache.
template <typename W, typename X, typename T>
void outputs_of(const X& x, int64_t rows, int64_t inputs, int64_t step, const Layer* layers, int64_t count, T* out) {
  constexpr int64_t WIDTH = BLOCK * BLOCKS;
  int64_t items = 0;
  for (int64_t l = 0; l < count; ++l) items += padded(layers[l].outputs, WIDTH) / WIDTH;
  std::unique_ptr<float[]> wide;
#pragma omp for schedule(static) nowait
  for (int64_t item = 0; item < items; ++item) {
    const Layer* layer = layers;
    T* to = out;
    int64_t place = item;
    for (int64_t width; place >= (width = padded(layer->outputs, WIDTH) / WIDTH); ++layer) {
      place -= width;
      to += rows * layer->outputs;
    }
    const W* weight = static_cast<const W*>(layer->weight) + place * WIDTH * padded(inputs, step);
    if constexpr (std::is_same<W, BFloat16>::value)
      if (rows > WIDEN_ROWS) {
        const int64_t numbers = WIDTH * padded(inputs, step);
        if (!wide) wide.reset(new float[numbers]);
        for (int64_t k = 0; k < numbers; k += 2 * BLOCK)
          for (int p = 0; p < PARTS; ++p) {
            Vector first, second;
            load_two(weight, k / BLOCK, p, first, second);
            store(wide.get() + k + p * LANES, first);
            store(wide.get() + k + BLOCK + p * LANES, second);
          }
        tiles(x, rows, inputs, wide.get(), *layer, place * WIDTH, to);
        continue;
      }
    tiles(x, rows, inputs, weight, *layer, place * WIDTH, to);
  }
}

inline int64_t useful(int64_t threads, int64_t rows, int64_t inputs, const Layer* layers, int64_t count) {
  int64_t outputs = 0;
  for (int64_t l = 0; l < count; ++l) outputs += layers[l].outputs;
  return rows * inputs * outputs > FEW ? threads : 1;
}

template <typename W>
void product(const float* x, float* out, int64_t rows, int64_t inputs, const Layer* layers, int64_t count,
             int64_t threads) {
#pragma omp parallel num_threads(useful(threads, rows, inputs, layers, count))
  outputs_of<W>(x, rows, inputs, 2, layers, count, out);
}

template <typename W>
void product(const BFloat16* x, BFloat16* out, int64_t rows, int64_t inputs, const Layer* layers, int64_t count,
             int64_t threads) {
  std::unique_ptr<float[]> wide(new float[rows * inputs]);
#pragma omp parallel num_threads(useful(threads, rows, inputs, layers, count))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * inputs; ++i) wide[i] = widen(x[i]);
    outputs_of<W>(static_cast<const float*>(wide.get()), rows, inputs, 2, layers, count, out);
  }
}

template <typename T>
void product_int8(const T* x, T* out, int64_t rows, int64_t inputs, const Layer* layers, int64_t count,
                  int64_t threads) {
  const int64_t groups = padded(inputs, GROUP) / GROUP;
  std::unique_ptr<int8_t[]> bytes(new int8_t[rows * groups * GROUP]);
  std::unique_ptr<float[]> scales(new float[rows * groups]);
  std::unique_ptr<int32_t[]> starts(new int32_t[rows * groups]);
  const Quantised quantised{bytes.get(), scales.get(), starts.get(), groups};
#pragma omp parallel num_threads(useful(threads, rows, inputs, layers, count))
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
      quantise(x + row * inputs, inputs, &bytes[row * groups * GROUP], &scales[row * groups], &starts[row * groups]);
    outputs_of<uint8_t>(quantised, rows, inputs, 4, layers, count, out);
  }
}

}  // namespace

// x [rows, inputs]; out holds [rows, outputs] of each layer, one after another.
#define PRODUCT(WEIGHTS, TYPE, FUNCTION, NAME)                                                                       \
  extern "C" void llm_product_##WEIGHTS##_##NAME(const TYPE* x, TYPE* out, int64_t rows, int64_t inputs,             \
                                                 const Layer* layers, int64_t count, int64_t threads) {              \
    FUNCTION(x, out, rows, inputs, layers, count, threads);                                                          \
  }
PRODUCT(int8, float, product_int8, float32)
PRODUCT(int8, BFloat16, product_int8, bfloat16)
PRODUCT(float32, float, product<float>, float32)
PRODUCT(bfloat16, float, product<BFloat16>, float32)
PRODUCT(bfloat16, BFloat16, product<BFloat16>, bfloat16)

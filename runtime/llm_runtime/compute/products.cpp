// Matrix products of a step's rows on a CPU, y = x W' + b, for layers that read the same x in one call. With few rows a
// product takes as long as reading its weights, so each weight is read once, in the order in which it lies in memory.
//
// Weights lie in blocks of 16 outputs: each lane of a vector is an output, and nothing is summed across a vector. A
// thread takes neighbouring blocks, and the same ones at each step. Blocks are padded with zeros, an odd number of
// inputs, too. The order of a block's numbers is
//   float32   [inputs][16]
//   bfloat16  [inputs / 2][16][2]
//   int8      [inputs / 4][16][4], with 128 added, so that a byte is not negative
//   int4      [inputs / 32] of `Nibbles`: a group of 32 inputs with a scale and a zero point for each output
//
// int8 and int4 multiply integers. Each row of x is quantised by itself, in groups of 32 inputs with a scale each: so
// no row depends on its neighbours, and one large input costs precision in its group only.

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
constexpr int GROUP = 32;                        // inputs that share a scale in a quantised row and in an int4 weight
constexpr int FEW = 1 << 16;                     // so few multiplications are done before another thread has woken
constexpr int WIDEN_ROWS = 2 * ROWS;             // beyond, bfloat16 and int4 weights are widened once for all rows

typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint8_t Fours __attribute__((vector_size(LANES * 4)));
typedef uint8_t Unsigned __attribute__((vector_size(LANES)));
typedef int16_t Shorts __attribute__((vector_size(LANES * 2)));

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

// `dot`: sum[i] += the four weights of output i times the four inputs that each 32 bits of x hold. Weights come with
// WEIGHT_ZERO added, which the caller takes off again: it starts from the sum of the inputs.
// `dot_small`: the same of weights from 0 to 15.
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
constexpr int WEIGHT_ZERO = 128;
inline Ints dot(Ints sum, Fours weights, Ints x) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)x);
#else
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, (__m256i)x);
#endif
}
inline Ints dot_small(Ints sum, Fours weights, Ints x) { return dot(sum, weights, x); }
#elif defined(__AVX512BW__)
// |w| times x with the sign of w: the sum of two products of 127 fits into 16 bits, which that of 255 does not.
constexpr int WEIGHT_ZERO = 0;
inline Ints dot(Ints sum, Fours weights, Ints x) {
  const __m512i w = _mm512_xor_si512((__m512i)weights, _mm512_set1_epi8(-128));
  const __m512i turned = _mm512_mask_sub_epi8((__m512i)x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), (__m512i)x);
  const __m512i twos = _mm512_maddubs_epi16(_mm512_abs_epi8(w), turned);
  return sum + (Ints)_mm512_madd_epi16(twos, _mm512_set1_epi16(1));
}
inline Ints dot_small(Ints sum, Fours weights, Ints x) {
  return sum + (Ints)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)weights, (__m512i)x), _mm512_set1_epi16(1));
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
constexpr int WEIGHT_ZERO = 0;
inline Ints dot(Ints sum, Fours weights, Ints x) {
  const __m256i w = _mm256_xor_si256((__m256i)weights, _mm256_set1_epi8(-128));
  const __m256i twos = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8((__m256i)x, w));
  return sum + (Ints)_mm256_madd_epi16(twos, _mm256_set1_epi16(1));
}
inline Ints dot_small(Ints sum, Fours weights, Ints x) {
  return sum + (Ints)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)weights, (__m256i)x), _mm256_set1_epi16(1));
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
inline Ints dot_small(Ints sum, Fours weights, Ints x) { return dot(sum, weights, x); }
#endif

// Zero points (0 to 255) times the sum of a group's inputs: both fit into 16 bits, whose product is one instruction.
inline Ints times(Ints zeros, int32_t sum) {
#if defined(__AVX512BW__)
  return (Ints)_mm512_madd_epi16((__m512i)zeros, (__m512i)spread(sum));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return (Ints)_mm256_madd_epi16((__m256i)zeros, (__m256i)spread(sum));
#else
  return zeros * spread(sum);
#endif
}

// Rows of x as integers of 8 bits. An integer times its group's scale is the input.
struct Quantised {
  const int8_t* x;        // [rows, groups * GROUP], zeros at the end
  const float* scales;    // [rows, groups]; NaN where the group holds a number that is not finite
  const int32_t* wholes;  // [rows, groups]: sums of the integers, to take zero points off
  int64_t groups;
};

template <typename T>
void quantise(const T* x, int64_t inputs, int8_t* to, float* scales, int32_t* wholes) {
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
    wholes[group] = whole;
    scales[group] = inverse * top > 0 ? top / 127 + fault : fault;
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
        for (int p = 0; p < PARTS; ++p)
          whole[r][b][p] = spread(-WEIGHT_ZERO * rows.wholes[(row + r) * rows.groups + group]);
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

// A group's inputs of a block as int4: a weight is (number - zero) * scale, times the layer's scale. Of eight inputs the
// first four are the lower halves of bytes, and the others the upper.
struct Nibbles {
  uint8_t fours[GROUP / 8][BLOCK * 4];
  uint16_t scales[BLOCK];  // float16, finite
  uint8_t zeros[BLOCK];
};
// The same as many rows read it.
struct alignas(64) Unpacked {
  uint8_t fours[GROUP / 4][BLOCK * 4];
  float scales[BLOCK];
  int32_t zeros[BLOCK];
};

inline void load_eight(const Nibbles& from, int eight, int part, Fours& first, Fours& second) {
  const Words both = read<Words>(from.fours[eight] + part * LANES * 4);
  first = (Fours)(both & 0x0F0F0F0Fu);
  second = (Fours)((both >> 4) & 0x0F0F0F0Fu);
}
inline void load_eight(const Unpacked& from, int eight, int part, Fours& first, Fours& second) {
  first = read<Fours>(from.fours[2 * eight] + part * LANES * 4);
  second = read<Fours>(from.fours[2 * eight + 1] + part * LANES * 4);
}
inline Vector scales_of(const Nibbles& from, int part) {
  // The sign stays, exponent and fraction move to their places, and 2^112 is the difference of the exponents' zeros.
  const Ints bits = __builtin_convertvector(read<Shorts>(from.scales + part * LANES), Ints);
  return (Vector)((bits << 13) & (int32_t)0x8FFFFFFF) * 0x1p112f;
}
inline Vector scales_of(const Unpacked& from, int part) { return load(from.scales + part * LANES); }
inline Ints zeros_of(const Nibbles& from, int part) {
  return __builtin_convertvector(read<Unsigned>(from.zeros + part * LANES), Ints);
}
inline Ints zeros_of(const Unpacked& from, int part) { return read<Ints>(from.zeros + part * LANES); }

// W is Nibbles or Unpacked.
template <int R, int B, typename W>
inline void multiply(const Quantised& rows, int64_t row, int64_t inputs, const W* weight, Sums<1, R, B>& sums) {
  const int64_t count = rows.groups, stride = count * GROUP;
  const int8_t* x = rows.x + row * stride;
  for (int64_t n = 0; n < count; ++n) {
    Ints whole[R][B][PARTS];
    for (int b = 0; b < B; ++b)
      for (int p = 0; p < PARTS; ++p) {
        const Ints zeros = zeros_of(weight[b * count + n], p);
        for (int r = 0; r < R; ++r)
          whole[r][b][p] = times(zeros, -rows.wholes[(row + r) * count + n]);
      }
    for (int eight = 0; eight < GROUP / 8; ++eight) {
      Fours first[B][PARTS], second[B][PARTS];
      for (int b = 0; b < B; ++b)
        for (int p = 0; p < PARTS; ++p) load_eight(weight[b * count + n], eight, p, first[b][p], second[b][p]);
      for (int r = 0; r < R; ++r) {
        const int8_t* at = x + r * stride + n * GROUP + eight * 8;
        const Ints low = spread(read<int32_t>(at)), high = spread(read<int32_t>(at + 4));
        for (int b = 0; b < B; ++b)
          for (int p = 0; p < PARTS; ++p)
            whole[r][b][p] = dot_small(dot_small(whole[r][b][p], first[b][p], low), second[b][p], high);
      }
    }
    for (int b = 0; b < B; ++b)
      for (int p = 0; p < PARTS; ++p) {
        const Vector scales = scales_of(weight[b * count + n], p);
        for (int r = 0; r < R; ++r)
          sums.at[0][r][b][p] += __builtin_convertvector(whole[r][b][p], Vector) *
                                 (scales * rows.scales[(row + r) * count + n]);
      }
  }
}

// How a weight lies in memory: how many W one block of outputs takes, and what it is widened to for many rows.
template <typename W> struct Form {
  typedef W Wide;
  static int64_t size(int64_t inputs) { return padded(inputs, std::is_same<W, uint8_t>::value ? 4 : 2) * BLOCK; }
};
template <> struct Form<BFloat16> {
  typedef float Wide;
  static int64_t size(int64_t inputs) { return Form<float>::size(inputs); }
};
template <> struct Form<Nibbles> {
  typedef Unpacked Wide;
  static int64_t size(int64_t inputs) { return padded(inputs, GROUP) / GROUP; }
};

void widen(const BFloat16* from, int64_t size, float* to) {
  for (int64_t k = 0; k < size; k += 2 * BLOCK)
    for (int p = 0; p < PARTS; ++p) {
      Vector first, second;
      load_two(from, k / BLOCK, p, first, second);
      store(to + k + p * LANES, first);
      store(to + k + BLOCK + p * LANES, second);
    }
}
void widen(const Nibbles* from, int64_t size, Unpacked* to) {
  for (int64_t n = 0; n < size; ++n)
    for (int p = 0; p < PARTS; ++p) {
      for (int eight = 0; eight < GROUP / 8; ++eight) {
        Fours first, second;
        load_eight(from[n], eight, p, first, second);
        std::memcpy(to[n].fours[2 * eight] + p * LANES * 4, &first, sizeof first);
        std::memcpy(to[n].fours[2 * eight + 1] + p * LANES * 4, &second, sizeof second);
      }
      store(to[n].scales + p * LANES, scales_of(from[n], p));
      const Ints zeros = zeros_of(from[n], p);
      std::memcpy(to[n].zeros + p * LANES, &zeros, sizeof zeros);
    }
}

}  // namespace

// A linear layer. `scales` [outputs] belong to int8 and int4, `bias` may be null; both are padded like the outputs.
struct Layer {
  const void* weight;
  const float *scales, *bias;
  int64_t outputs;
};

extern "C" int llm_product_outputs() { return BLOCK * BLOCKS; }  // Layers are padded to a multiple of it.

namespace {

// Weights [outputs, inputs] in blocks of 16 outputs, where TOGETHER inputs of an output are neighbours. `lost` is set if
// a number is not the same in its new form; then the blocks are of no use.
template <int TOGETHER, typename From, typename To, typename Convert>
void in_blocks(const From* weight, To* blocks, int64_t outputs, int64_t inputs, int64_t threads, int32_t* lost,
               Convert convert) {
  const int64_t wide = padded(inputs, std::max(TOGETHER, 2)), count = padded(outputs, BLOCK * BLOCKS) / BLOCK;
  int32_t faults = 0;
#pragma omp parallel for num_threads(outputs * inputs > FEW ? threads : 1) schedule(static) reduction(| : faults)
  for (int64_t block = 0; block < count; ++block) {
    To* to = blocks + block * wide * BLOCK;
    for (int64_t k = 0; k < wide && !faults; k += TOGETHER)
      for (int64_t n = block * BLOCK; n < (block + 1) * BLOCK; ++n)
        for (int t = 0; t < TOGETHER; ++t)
          *to++ = convert(n < outputs && k + t < inputs ? weight[n * inputs + k + t] : From{}, faults);
  }
  *lost = faults;
}

}  // namespace

extern "C" {
void llm_blocks_float32(const float* weight, float* blocks, int64_t outputs, int64_t inputs, int64_t threads,
                        int32_t* lost) {
  in_blocks<1>(weight, blocks, outputs, inputs, threads, lost, [](float x, int32_t&) { return x; });
}
void llm_blocks_bfloat16(const uint16_t* weight, uint16_t* blocks, int64_t outputs, int64_t inputs, int64_t threads,
                         int32_t* lost) {
  in_blocks<2>(weight, blocks, outputs, inputs, threads, lost, [](uint16_t x, int32_t&) { return x; });
}
// A float32 whose lower half is zero is a bfloat16.
void llm_blocks_float32_bfloat16(const uint32_t* weight, uint16_t* blocks, int64_t outputs, int64_t inputs,
                                 int64_t threads, int32_t* lost) {
  in_blocks<2>(weight, blocks, outputs, inputs, threads, lost, [](uint32_t x, int32_t& faults) {
    faults |= x & 0xFFFF;
    return uint16_t(x >> 16);
  });
}
void llm_blocks_int8(const int8_t* weight, uint8_t* blocks, int64_t outputs, int64_t inputs, int64_t threads,
                     int32_t* lost) {
  in_blocks<4>(weight, blocks, outputs, inputs, threads, lost, [](int8_t x, int32_t&) { return uint8_t(x ^ -128); });
}
}

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
template <int R, typename W, typename T>
void tile(const Quantised& x, int64_t row, int64_t inputs, const W* weight, const Layer& layer, int64_t first, T* out) {
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
void outputs_of(const X& x, int64_t rows, int64_t inputs, const Layer* layers, int64_t count, T* out) {
  typedef typename Form<W>::Wide Wide;
  constexpr int64_t WIDTH = BLOCK * BLOCKS;
  const int64_t size = BLOCKS * Form<W>::size(inputs);
  int64_t items = 0;
  for (int64_t l = 0; l < count; ++l) items += padded(layers[l].outputs, WIDTH) / WIDTH;
  std::unique_ptr<Wide[]> wide;
#pragma omp for schedule(static) nowait
  for (int64_t item = 0; item < items; ++item) {
    const Layer* layer = layers;
    T* to = out;
    int64_t place = item;
    for (int64_t width; place >= (width = padded(layer->outputs, WIDTH) / WIDTH); ++layer) {
      place -= width;
      to += rows * layer->outputs;
    }
    const W* weight = static_cast<const W*>(layer->weight) + place * size;
    if constexpr (!std::is_same<W, Wide>::value)
      if (rows > WIDEN_ROWS) {
        if (!wide) wide.reset(new Wide[size]);
        widen(weight, size, wide.get());
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
  outputs_of<W>(x, rows, inputs, layers, count, out);
}

template <typename W>
void product(const BFloat16* x, BFloat16* out, int64_t rows, int64_t inputs, const Layer* layers, int64_t count,
             int64_t threads) {
  std::unique_ptr<float[]> wide(new float[rows * inputs]);
#pragma omp parallel num_threads(useful(threads, rows, inputs, layers, count))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * inputs; ++i) wide[i] = widen(x[i]);
    outputs_of<W>(static_cast<const float*>(wide.get()), rows, inputs, layers, count, out);
  }
}

template <typename W, typename T>
void product_of_integers(const T* x, T* out, int64_t rows, int64_t inputs, const Layer* layers, int64_t count,
                         int64_t threads) {
  const int64_t groups = padded(inputs, GROUP) / GROUP;
  std::unique_ptr<int8_t[]> bytes(new int8_t[rows * groups * GROUP]);
  std::unique_ptr<float[]> scales(new float[rows * groups]);
  std::unique_ptr<int32_t[]> wholes(new int32_t[rows * groups]);
  const Quantised quantised{bytes.get(), scales.get(), wholes.get(), groups};
#pragma omp parallel num_threads(useful(threads, rows, inputs, layers, count))
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
      quantise(x + row * inputs, inputs, &bytes[row * groups * GROUP], &scales[row * groups],
               &wholes[row * groups]);
    outputs_of<W>(quantised, rows, inputs, layers, count, out);
  }
}

}  // namespace

// x [rows, inputs]; out holds [rows, outputs] of each layer, one after another.
#define PRODUCT(WEIGHTS, TYPE, FUNCTION, NAME)                                                                       \
  extern "C" void llm_product_##WEIGHTS##_##NAME(const TYPE* x, TYPE* out, int64_t rows, int64_t inputs,             \
                                                 const Layer* layers, int64_t count, int64_t threads) {              \
    FUNCTION(x, out, rows, inputs, layers, count, threads);                                                          \
  }
PRODUCT(int4, float, product_of_integers<Nibbles>, float32)
PRODUCT(int4, BFloat16, product_of_integers<Nibbles>, bfloat16)
PRODUCT(int8, float, product_of_integers<uint8_t>, float32)
PRODUCT(int8, BFloat16, product_of_integers<uint8_t>, bfloat16)
PRODUCT(float32, float, product<float>, float32)
PRODUCT(bfloat16, float, product<BFloat16>, float32)
PRODUCT(bfloat16, BFloat16, product<BFloat16>, bfloat16)

namespace {

inline float total(Vector v) {
  float sum = 0;
  for (int j = 0; j < LANES; ++j) sum += v[j];
  return sum;
}

// GROUP weights and how much each counts.
struct Fitted {
  Vector weights[GROUP / LANES], counts[GROUP / LANES];

  // The scale that fits best to the integers that `scale` makes, if 0 is `zero`, and what it takes off the squared error.
  void fit(float zero, float& scale, float& gain) const {
    const float inverse = 1 / scale;
    const Vector least = spread(-zero), most = spread(15 - zero);
    Vector common = {}, squares = {};
    for (int i = 0; i < GROUP / LANES; ++i) {
      Vector n = weights[i] * inverse + 12582912.0f - 12582912.0f;  // 1.5 * 2^23: rounds.
      n = n < least ? least : n;
      n = n > most ? most : n;
      common += n * weights[i] * counts[i];
      squares += n * n * counts[i];
    }
    const float square = total(squares), product = total(common);
    gain = square > 0 ? product * product / square : 0;
    if (gain > 0) scale = product / square;
  }
};

constexpr float SHRINKS[] = {1.08f, 1.0f, 0.94f, 0.88f, 0.82f, 0.76f, 0.7f};

void range(const float* weights, const float* counts, float* scale, float* zero) {
  Fitted group;
  std::memcpy(group.weights, weights, sizeof group.weights);
  std::memcpy(group.counts, counts, sizeof group.counts);
  float low = 0, high = 0;
  for (int i = 0; i < GROUP; ++i) low = std::min(low, weights[i]), high = std::max(high, weights[i]);
  const float size = high - low;
  *scale = 0, *zero = 0;
  if (!(size > 1e-30f)) return;
  const float middle = std::nearbyint(-low / size * 15);
  float best = -1;
  for (int beside = -1; beside <= 1; ++beside) {
    const float tried = middle + beside;
    if (tried < 0 || tried > 15) continue;
    for (const float shrink : SHRINKS) {
      float fitted = size * shrink / 15, gain;
      for (int again = 0; again < 2; ++again) group.fit(tried, fitted, gain);
      if (gain > best) best = gain, *scale = fitted, *zero = tried;
    }
  }
}

}  // namespace

// The scale and the zero point of each GROUP inputs of weights [outputs, inputs] with the least squared error, where an
// input counts as often as `counts` [inputs] says. Weights are finite, and inputs a multiple of GROUP.
extern "C" void llm_int4_ranges_float32(const float* weights, const float* counts, int64_t outputs, int64_t inputs,
                                        float* scales, float* zeros, int64_t threads) {
  const int64_t groups = inputs / GROUP;
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < outputs * groups; ++n)
    range(weights + n * GROUP, counts + n % groups * GROUP, scales + n, zeros + n);
}

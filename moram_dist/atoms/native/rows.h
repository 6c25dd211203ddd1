// What is done for a single token: finding its best atoms, their weights, products of rows.
//
// Functions are inlined into loops that the compiler makes in versions for wider vectors. Sums are
// taken in lanes, in an order that the code states, and without fused operations: so all versions
// have the same bits, as have the same steps in different operations.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

// The processor's version is chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_WIDE_VECTORS \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_WIDE_VECTORS
#endif

#define INLINED template <typename F> inline __attribute__((always_inline))

namespace row {

constexpr int kRounds = 24;  // of bisection, before scores count as tied
constexpr int kLanes = 16;
constexpr int kDoubles = 8;  // lanes of sums in double

// The sum of lanes, whose number is a power of two.
template <int lanes, typename F>
inline __attribute__((always_inline)) F sum_of_lanes(F* lane) {
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// The sum of term(0) to term(num - 1), in double.
template <typename Term>
inline __attribute__((always_inline)) double sum_of(int64_t num, Term term) {
  double lanes[kDoubles] = {0};
  const int64_t whole = num / kDoubles * kDoubles;
  for (int64_t i = 0; i < whole; i += kDoubles)
    for (int lane = 0; lane < kDoubles; ++lane) lanes[lane] += term(i + lane);
  for (int64_t i = whole; i < num; ++i) lanes[i - whole] += term(i);
  return sum_of_lanes<kDoubles>(lanes);
}

INLINED double sum_of_squares(const F* score, int64_t num) {
  return sum_of(num, [=](int64_t i) { return static_cast<double>(score[i]) * score[i]; });
}

INLINED F norm_of(F squares) {
  return squares == 0 ? std::numeric_limits<F>::infinity() : std::sqrt(squares);
}

INLINED void add_scaled(const F* value, F strength, int64_t width, F* y) {
  for (int64_t e = 0; e < width; ++e) y[e] += strength * value[e];
}

INLINED F dot(const F* a, const F* b, int64_t width) {
  F lanes[kLanes] = {0};
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  for (int64_t i = whole; i < width; ++i) lanes[i - whole] += a[i] * b[i];
  return sum_of_lanes<kLanes>(lanes);
}

INLINED int64_t count_reaching(const F* score, int64_t num, F bound) {
  int32_t count = 0;
  for (int64_t i = 0; i < num; ++i) count += score[i] >= bound;
  return count;
}

template <typename F>
struct Vector {
  typedef F type __attribute__((vector_size(64)));
  static constexpr int lanes = 64 / sizeof(F);
};

INLINED typename Vector<F>::type loaded(const F* from) {
  typename Vector<F>::type out;
  __builtin_memcpy(&out, from, sizeof(out));
  return out;
}

// The lowest and the highest number of a row; any numbers if there is a NaN.
INLINED void range_of(const F* score, int64_t num, F& low, F& high) {
  constexpr int lanes = Vector<F>::lanes;
  low = high = score[0];
  if (num < lanes) {
    for (int64_t i = 1; i < num; ++i) {
      low = score[i] < low ? score[i] : low;
      high = score[i] > high ? score[i] : high;
    }
    return;
  }
  auto least = loaded(score + num - lanes), most = least;
  for (int64_t i = 0; i + lanes <= num; i += lanes) {
    const auto next = loaded(score + i);
    least = next < least ? next : least;
    most = next > most ? next : most;
  }
  F lows[lanes], highs[lanes];
  __builtin_memcpy(lows, &least, sizeof(lows));
  __builtin_memcpy(highs, &most, sizeof(highs));
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) {
      lows[i] = lows[i + half] < lows[i] ? lows[i + half] : lows[i];
      highs[i] = highs[i + half] > highs[i] ? highs[i + half] : highs[i];
    }
  low = lows[0], high = highs[0];
}

// A bound that exactly `kept` scores of a row reach, by bisection; false if ties, NaN or infinite
// scores prevent it.
INLINED bool separated(const F* score, int64_t num, int64_t kept, F& bound) {
  F low, high;
  range_of(score, num, low, high);
  if (!std::isfinite(low) || !std::isfinite(high)) return false;
  for (int round = 0; round < kRounds; ++round) {
    bound = low + (high - low) / 2;
    const int64_t reached = count_reaching(score, num, bound);
    if (reached == kept) return true;
    (reached > kept ? low : high) = bound;
  }
  return false;
}

template <typename F>
void sort_out(const F* score, int64_t num, int64_t kept, int* place) {
  auto ordered = [score](int i) {
    return score[i] == score[i] ? score[i] : -std::numeric_limits<F>::infinity();
  };
  std::vector<int> all(num);
  std::iota(all.begin(), all.end(), 0);
  std::nth_element(all.begin(), all.begin() + kept - 1, all.end(), [&](int a, int b) {
    const F x = ordered(a), y = ordered(b);
    return x > y || (x == y && a < b);
  });
  std::copy_n(all.begin(), kept, place);
  std::sort(place, place + kept);
}

// The `kept` largest of a row, lower places first among ties, NaN last; ascending places. There must
// be room for one place more.
INLINED void best(const F* score, int64_t num, int64_t kept, int* place) {
  F bound;
  if (kept == num) {
    for (int64_t k = 0; k < kept; ++k) place[k] = k;
  } else if (separated(score, num, kept, bound)) {
    int64_t found = 0;  // without a branch, which the processor could not predict
    for (int64_t i = 0; i < num; ++i) {
      place[found] = i;
      found += score[i] >= bound;
    }
  } else {
    sort_out(score, num, kept, place);
  }
}

// exp(x) of x <= 0, to a unit in the last place, in a form that the compiler vectorises.
inline __attribute__((always_inline)) double exponential(double x) { return std::exp(x); }

inline __attribute__((always_inline)) float exponential(float x) {
  constexpr float kLowest = -87.0f;  // below, a weight is less than 1e-37 of the highest
  const float y = x > kLowest ? x : kLowest;
  const float n = std::nearbyint(y * 1.44269504f);
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  union {
    int32_t bits;
    float power;
  } two;
  two.bits = (static_cast<int32_t>(n) + 127) << 23;
  const float found = p * two.power + (x - x);  // NaN of NaN
  return x <= kLowest ? 0.0f : found;
}

// Relevance, weight, and weight with 0 for silenced atoms, of one token.
INLINED void weigh(const F* __restrict score, F norm, F tau, F threshold, int64_t kept,
                   F* __restrict relevance, F* __restrict weight, F* __restrict spoken) {
  for (int64_t k = 0; k < kept; ++k) relevance[k] = score[k] / norm;
  F lowest, highest;
  range_of(relevance, kept, lowest, highest);
  for (int64_t k = 0; k < kept; ++k) weight[k] = exponential((relevance[k] - highest) / tau);
  const double share =
      1 / sum_of(kept, [=](int64_t k) { return static_cast<double>(weight[k]); });
  const bool nothing = std::isinf(norm) && norm > 0;
  for (int64_t k = 0; k < kept; ++k) {
    weight[k] = nothing ? 0 : static_cast<F>(weight[k] * share);
    spoken[k] = threshold > 0 && !(relevance[k] >= threshold) ? 0 * weight[k] : weight[k];
  }
}

// A and B of recall_backward.py over a token's chosen atoms. What is left of q - A is small: rounding
// in A would show.
INLINED void sums(const F* score, const F* relevance, const F* spoken, const F* u, int64_t kept, F& a,
                  F& b) {
  auto wq = [=](int64_t k) { return static_cast<double>(spoken[k]) * score[k] * u[k]; };
  a = sum_of(kept, wq);
  b = sum_of(kept, [=](int64_t k) { return wq(k) * relevance[k]; });
}

// Gradient of a token's chosen scores, except through the norm; returns the factor by which each of
// its scores is multiplied for the gradient through the norm.
INLINED F gradient(const F* score, F norm, const F* relevance, const F* weight, const F* spoken,
                   const F* u, F a, F b, F tau, int64_t kept, F* __restrict direct) {
  const F scale = tau * norm;
  for (int64_t k = 0; k < kept; ++k) {
    const F q = static_cast<F>(spoken[k] == weight[k]) * score[k] * u[k];
    direct[k] = spoken[k] * u[k] + weight[k] * (q - a) / scale;
  }
  const double mean =
      sum_of(kept, [=](int64_t k) { return static_cast<double>(weight[k]) * relevance[k]; });
  return -((b - a * mean) / tau) / (norm * norm);
}

}  // namespace row

namespace {

constexpr int64_t kNumbersATask = 4096;

inline int64_t rows_at_once(int64_t numbers_per_row) {
  return std::max<int64_t>(1, kNumbersATask / std::max<int64_t>(1, numbers_per_row));
}

}  // namespace

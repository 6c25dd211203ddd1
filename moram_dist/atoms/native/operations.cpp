// The work on chosen atoms on a CPU, each step as one operation. atoms/reference.py has the same
// functions in torch, where each is several operations: with few tokens, calling them is most of
// the cost. The result for a token does not depend on the other tokens.
//
// Letters: T tokens, N scores of a token, K atoms kept per token, L linears, E outputs.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;

constexpr int kRounds = 24;  // of bisection, before scores count as tied
constexpr int64_t kNumbersATask = 4096;

int64_t rows_at_once(int64_t numbers_per_row) {
  return std::max<int64_t>(1, kNumbersATask / std::max<int64_t>(1, numbers_per_row));
}

// Loops over whole rows, once for float and once for double. The compiler makes versions of each for
// wider vectors, and the processor's is chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_WIDE_VECTORS \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_WIDE_VECTORS
#endif

#define LOOPS(F)                                                                            \
  FOR_WIDE_VECTORS int64_t count_reaching(const F* score, int64_t num, F bound) {           \
    int32_t count = 0;                                                                      \
    for (int64_t i = 0; i < num; ++i) count += score[i] >= bound;                           \
    return count;                                                                           \
  }                                                                                         \
  FOR_WIDE_VECTORS void range_of(const F* score, int64_t num, F& low, F& high) {            \
    F lows[16], highs[16];                                                                  \
    std::fill_n(lows, 16, score[0]);                                                        \
    std::fill_n(highs, 16, score[0]);                                                       \
    for (int64_t i = 0; i + 16 <= num; i += 16)                                             \
      for (int64_t lane = 0; lane < 16; ++lane) {                                           \
        const F s = score[i + lane];                                                        \
        lows[lane] = s < lows[lane] ? s : lows[lane];                                       \
        highs[lane] = s > highs[lane] ? s : highs[lane];                                    \
      }                                                                                     \
    for (int64_t i = num / 16 * 16; i < num; ++i) {                                         \
      lows[0] = std::min(lows[0], score[i]);                                                \
      highs[0] = std::max(highs[0], score[i]);                                              \
    }                                                                                       \
    low = *std::min_element(lows, lows + 16);                                               \
    high = *std::max_element(highs, highs + 16);                                            \
  }                                                                                         \
  FOR_WIDE_VECTORS double sum_of_squares(const F* score, int64_t num) {                     \
    double lanes[16] = {0};                                                                 \
    for (int64_t i = 0; i + 16 <= num; i += 16)                                             \
      for (int64_t lane = 0; lane < 16; ++lane) {                                           \
        const double s = score[i + lane];                                                   \
        lanes[lane] += s * s;                                                               \
      }                                                                                     \
    for (int64_t i = num / 16 * 16; i < num; ++i)                                           \
      lanes[0] += static_cast<double>(score[i]) * score[i];                                 \
    return std::accumulate(lanes, lanes + 16, 0.0);                                         \
  }                                                                                         \
  FOR_WIDE_VECTORS void add_scaled(const F* value, F strength, int64_t width, F* y) {       \
    for (int64_t e = 0; e < width; ++e) y[e] += strength * value[e];                        \
  }                                                                                         \
  FOR_WIDE_VECTORS F dot(const F* a, const F* b, int64_t width) {                           \
    F lanes[16] = {0}, total = 0;                                                           \
    for (int64_t i = 0; i + 16 <= width; i += 16)                                           \
      for (int64_t lane = 0; lane < 16; ++lane) lanes[lane] += a[i + lane] * b[i + lane];   \
    for (int64_t i = width / 16 * 16; i < width; ++i) total += a[i] * b[i];                 \
    for (int64_t lane = 0; lane < 16; ++lane) total += lanes[lane];                         \
    return total;                                                                           \
  }
LOOPS(float)
LOOPS(double)

// A bound that exactly `kept` scores of a row reach, by bisection; false if ties, NaN or infinite
// scores prevent it.
template <typename F>
bool separated(const F* score, int64_t num, int64_t kept, F& bound) {
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

// The `kept` largest of a row, lower places first among ties, NaN last; ascending places.
template <typename F>
void best(const F* score, int64_t num, int64_t kept, std::vector<int64_t>& place) {
  place.resize(kept);
  F bound;
  if (kept == num) {
    std::iota(place.begin(), place.end(), 0);
  } else if (separated(score, num, kept, bound)) {
    for (int64_t i = 0, found = 0; found < kept; ++i)
      if (score[i] >= bound) place[found++] = i;
  } else {
    auto ordered = [score](int64_t i) {
      return score[i] == score[i] ? score[i] : -std::numeric_limits<F>::infinity();
    };
    std::vector<int64_t> all(num);
    std::iota(all.begin(), all.end(), 0);
    std::nth_element(all.begin(), all.begin() + kept - 1, all.end(), [&](int64_t a, int64_t b) {
      const F x = ordered(a), y = ordered(b);
      return x > y || (x == y && a < b);
    });
    std::copy_n(all.begin(), kept, place.begin());
    std::sort(place.begin(), place.end());
  }
}

// Relevance, weight, and weight with 0 for silenced atoms, of one token.
template <typename F>
void weigh_row(const F* score, F norm, F tau, F threshold, int64_t kept, F* relevance, F* weight,
               F* spoken) {
  F highest = -std::numeric_limits<F>::infinity();
  for (int64_t k = 0; k < kept; ++k) {
    relevance[k] = score[k] / norm;
    highest = std::max(highest, relevance[k]);
  }
  double total = 0;
  for (int64_t k = 0; k < kept; ++k) {
    weight[k] = std::exp((relevance[k] - highest) / tau);
    total += weight[k];
  }
  const bool nothing = std::isinf(norm) && norm > 0;
  for (int64_t k = 0; k < kept; ++k) {
    weight[k] = nothing ? 0 : static_cast<F>(weight[k] / total);
    spoken[k] = threshold > 0 && !(relevance[k] >= threshold) ? 0 * weight[k] : weight[k];
  }
}

std::tuple<Tensor, Tensor, Tensor> route(const Tensor& given, int64_t num_kept, int64_t shard,
                                         int64_t num_shards, int64_t num_atoms) {
  const Tensor score = given.contiguous();
  const int64_t rows = score.size(0), num = score.size(1), kept = std::min(num_kept, num);
  Tensor squares = at::empty({rows, 1}, score.options());
  Tensor found = at::empty({rows, num_kept}, score.options());
  Tensor index = at::empty({rows, num_kept}, score.options().dtype(at::kInt));
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "route", [&] {
    const scalar_t* all = score.const_data_ptr<scalar_t>();
    scalar_t* square = squares.mutable_data_ptr<scalar_t>();
    scalar_t* out = found.mutable_data_ptr<scalar_t>();
    int* atom = index.mutable_data_ptr<int>();
    at::parallel_for(0, rows, rows_at_once(num), [&](int64_t begin, int64_t end) {
      std::vector<int64_t> place;
      for (int64_t t = begin; t < end; ++t) {
        const scalar_t* row = all + t * num;
        square[t] = static_cast<scalar_t>(sum_of_squares(row, num));
        best(row, num, kept, place);
        for (int64_t k = 0; k < num_kept; ++k) {
          const bool here = k < kept;
          out[t * num_kept + k] =
              here ? row[place[k]] : -std::numeric_limits<scalar_t>::infinity();
          atom[t * num_kept + k] =
              static_cast<int>(here ? place[k] * num_shards + shard : num_atoms);
        }
      }
    });
  });
  return {squares, found, index};
}

template <typename F>
F norm_of(F squares) {
  return squares == 0 ? std::numeric_limits<F>::infinity() : std::sqrt(squares);
}

Tensor norms(const Tensor& given) {
  const Tensor squares = given.contiguous();
  Tensor out = at::empty_like(squares);
  AT_DISPATCH_FLOATING_TYPES(squares.scalar_type(), "norms", [&] {
    const scalar_t* s = squares.const_data_ptr<scalar_t>();
    scalar_t* n = out.mutable_data_ptr<scalar_t>();
    for (int64_t t = 0; t < squares.numel(); ++t) n[t] = norm_of(s[t]);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> weigh(const Tensor& given, const Tensor& norms, double tau,
                                         double threshold) {
  const Tensor score = given.contiguous(), norm = norms.contiguous();
  const int64_t rows = score.size(0), kept = score.size(1);
  Tensor relevance = at::empty_like(score), weight = at::empty_like(score);
  Tensor spoken = at::empty_like(score);
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "weigh", [&] {
    const scalar_t *s = score.const_data_ptr<scalar_t>(), *n = norm.const_data_ptr<scalar_t>();
    scalar_t* r = relevance.mutable_data_ptr<scalar_t>();
    scalar_t* w = weight.mutable_data_ptr<scalar_t>();
    scalar_t* m = spoken.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, rows_at_once(kept), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = t * kept;
        weigh_row<scalar_t>(s + at, n[t], tau, threshold, kept, r + at, w + at, m + at);
      }
    });
  });
  return {relevance, weight, spoken};
}

Tensor sums(const Tensor& score, const Tensor& relevance, const Tensor& spoken, const Tensor& u) {
  const Tensor all[] = {score.contiguous(), relevance.contiguous(), spoken.contiguous(),
                        u.contiguous()};
  const int64_t rows = score.size(0), kept = score.size(1);
  Tensor out = at::empty({rows, 2}, score.options());
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "sums", [&] {
    const scalar_t *p = all[0].const_data_ptr<scalar_t>(), *s = all[1].const_data_ptr<scalar_t>();
    const scalar_t *w = all[2].const_data_ptr<scalar_t>(), *v = all[3].const_data_ptr<scalar_t>();
    scalar_t* total = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, rows_at_once(kept), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        double a = 0, b = 0;  // what is left of q - A is small: rounding in A would show
        for (int64_t i = t * kept; i < (t + 1) * kept; ++i) {
          const double wq = static_cast<double>(w[i]) * p[i] * v[i];
          a += wq;
          b += wq * s[i];
        }
        total[2 * t] = a;
        total[2 * t + 1] = b;
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> score_gradient(const Tensor& score, const Tensor& norms,
                                          const Tensor& relevance, const Tensor& weight,
                                          const Tensor& spoken, const Tensor& u,
                                          const Tensor& totals, double temperature) {
  const Tensor all[] = {score.contiguous(),  norms.contiguous(),  relevance.contiguous(),
                        weight.contiguous(), spoken.contiguous(), u.contiguous(),
                        totals.contiguous()};
  const int64_t rows = score.size(0), kept = score.size(1);
  Tensor direct = at::empty({rows, kept}, score.options());
  Tensor through_norm = at::empty({rows, 1}, score.options());
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "score_gradient", [&] {
    const scalar_t* in[7];
    for (int i = 0; i < 7; ++i) in[i] = all[i].const_data_ptr<scalar_t>();
    const auto [p, n, s, w, m, v, total] = std::tie(in[0], in[1], in[2], in[3], in[4], in[5], in[6]);
    scalar_t* out = direct.mutable_data_ptr<scalar_t>();
    scalar_t* factor = through_norm.mutable_data_ptr<scalar_t>();
    const scalar_t tau = temperature;
    const scalar_t *p_ = p, *n_ = n, *s_ = s, *w_ = w, *m_ = m, *v_ = v, *total_ = total;
    at::parallel_for(0, rows, rows_at_once(kept), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const scalar_t a = total_[2 * t], b = total_[2 * t + 1], scale = tau * n_[t];
        double mean = 0;
        for (int64_t i = t * kept; i < (t + 1) * kept; ++i) {
          const scalar_t q = m_[i] == w_[i] ? p_[i] * v_[i] : 0;
          out[i] = m_[i] * v_[i] + w_[i] * (q - a) / scale;
          mean += static_cast<double>(w_[i]) * s_[i];
        }
        factor[t] = -((b - a * mean) / tau) / (n_[t] * n_[t]);
      }
    });
  });
  return {direct, through_norm};
}

void add(const Tensor& row, const std::optional<Tensor>& here, const Tensor& number, Tensor to) {
  const Tensor place = row.contiguous(), what = number.contiguous();
  const Tensor valid = here ? here->contiguous() : Tensor();
  const int64_t rows = place.size(0), kept = place.size(1), num = to.size(1);
  TORCH_CHECK(to.is_contiguous(), "numbers are added to a contiguous tensor only");
  AT_DISPATCH_FLOATING_TYPES(to.scalar_type(), "add", [&] {
    AT_DISPATCH_INDEX_TYPES(place.scalar_type(), "add", [&] {
      const index_t* at_ = place.const_data_ptr<index_t>();
      const scalar_t* x = what.const_data_ptr<scalar_t>();
      const bool* ok = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
      scalar_t* out = to.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, rows, rows_at_once(kept), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          for (int64_t i = t * kept; i < (t + 1) * kept; ++i)
            if (!ok || ok[i]) out[t * num + at_[i]] += x[i];
      });
    });
  });
}

// The sum of each token's rows, weighted by strength; 0 for rows of other shards.
Tensor mix(const Tensor& row, const std::optional<Tensor>& here, const Tensor& strength,
           const Tensor& matrix) {
  const Tensor place = row.contiguous(), weight = strength.contiguous();
  const Tensor valid = here ? here->contiguous() : Tensor(), from = matrix.contiguous();
  const int64_t rows = place.size(0), kept = place.size(1), width = from.size(1);
  Tensor out = at::zeros({rows, width}, from.options());
  AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "mix", [&] {
    AT_DISPATCH_INDEX_TYPES(place.scalar_type(), "mix", [&] {
      const index_t* at_ = place.const_data_ptr<index_t>();
      const scalar_t *w = weight.const_data_ptr<scalar_t>(), *v = from.const_data_ptr<scalar_t>();
      const bool* ok = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
      scalar_t* y = out.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, rows, rows_at_once(kept * width), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          for (int64_t i = t * kept; i < (t + 1) * kept; ++i)
            if (!ok || ok[i]) add_scaled(v + at_[i] * width, w[i], width, y + t * width);
      });
    });
  });
  return out;
}

// Each token times its rows; 0 for rows of other shards.
Tensor products(const Tensor& tokens, const Tensor& row, const std::optional<Tensor>& here,
                const Tensor& matrix) {
  const Tensor place = row.contiguous(), x = tokens.contiguous(), from = matrix.contiguous();
  const Tensor valid = here ? here->contiguous() : Tensor();
  const int64_t rows = place.size(0), kept = place.size(1), width = from.size(1);
  Tensor out = at::empty({rows, kept}, from.options());
  AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "products", [&] {
    AT_DISPATCH_INDEX_TYPES(place.scalar_type(), "products", [&] {
      const index_t* at_ = place.const_data_ptr<index_t>();
      const scalar_t *p = x.const_data_ptr<scalar_t>(), *v = from.const_data_ptr<scalar_t>();
      const bool* ok = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
      scalar_t* y = out.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, rows, rows_at_once(kept * width), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          for (int64_t i = t * kept; i < (t + 1) * kept; ++i)
            y[i] = !ok || ok[i] ? dot(p + t * width, v + at_[i] * width, width) : 0;
      });
    });
  });
  return out;
}

// Outputs of linears that share an input, one tensor (T, E) each: the same products and sums, in the
// same order, as by the operations above. The first `num_atoms` rows of each matrix are atoms. All of
// them are mixed by a product if there are at most `mix_all` per chosen one.
std::vector<Tensor> answers(const Tensor& x, at::TensorList keys, at::TensorList values,
                            int64_t num_atoms, int64_t num_kept, double tau, double threshold,
                            int64_t mix_all) {
  const int64_t tokens = x.size(0), kept = std::min(num_kept, num_atoms);
  const bool dense = num_atoms <= mix_all * kept;
  std::vector<Tensor> out;
  for (size_t l = 0; l < keys.size(); ++l) {
    const Tensor scores = at::mm(x, keys[l].narrow(0, 0, num_atoms).t());
    const Tensor rows = values[l].narrow(0, 0, num_atoms);
    const int64_t width = rows.size(1);
    Tensor sums = at::zeros({tokens, dense ? num_atoms : width}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "answers", [&] {
      const scalar_t* all = scores.const_data_ptr<scalar_t>();
      const scalar_t* value = rows.const_data_ptr<scalar_t>();
      scalar_t* y = sums.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, tokens, 1, [&](int64_t begin, int64_t end) {
        std::vector<int64_t> place;
        std::vector<scalar_t> p(kept), r(kept), w(kept), m(kept);
        for (int64_t t = begin; t < end; ++t) {
          const scalar_t* row = all + t * num_atoms;
          best(row, num_atoms, kept, place);
          for (int64_t k = 0; k < kept; ++k) p[k] = row[place[k]];
          const scalar_t norm = norm_of(static_cast<scalar_t>(sum_of_squares(row, num_atoms)));
          weigh_row<scalar_t>(p.data(), norm, tau, threshold, kept, r.data(), w.data(), m.data());
          for (int64_t k = 0; k < kept; ++k) {
            const scalar_t strength = m[k] * p[k];
            if (dense)
              y[t * num_atoms + place[k]] = strength;
            else
              add_scaled(value + place[k] * width, strength, width, y + t * width);
          }
        }
      });
    });
    out.push_back(dense ? at::mm(sums, rows) : sums);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY(moram, m) {
  m.def("route(Tensor score, int num_kept, int shard, int num_shards, int num_atoms)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("norms(Tensor squares) -> Tensor");
  m.def("weigh(Tensor score, Tensor norm, float temperature, float threshold)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("sums(Tensor score, Tensor relevance, Tensor spoken, Tensor u) -> Tensor");
  m.def("score_gradient(Tensor score, Tensor norm, Tensor relevance, Tensor weight, Tensor spoken,"
        " Tensor u, Tensor totals, float temperature) -> (Tensor, Tensor)");
  m.def("add(Tensor row, Tensor? here, Tensor number, Tensor(a!) to) -> ()");
  m.def("mix(Tensor row, Tensor? here, Tensor strength, Tensor rows) -> Tensor");
  m.def("products(Tensor tokens, Tensor row, Tensor? here, Tensor rows) -> Tensor");
  m.def("answers(Tensor x, Tensor[] keys, Tensor[] values, int num_atoms, int num_kept,"
        " float temperature, float threshold, int mix_all) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(moram, CPU, m) {
  m.impl("route", route);
  m.impl("norms", norms);
  m.impl("weigh", weigh);
  m.impl("sums", sums);
  m.impl("score_gradient", score_gradient);
  m.impl("add", add);
  m.impl("mix", mix);
  m.impl("products", products);
  m.impl("answers", answers);
}

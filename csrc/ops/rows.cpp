// The operators on rows: affine maps and couplings, sums of log-scales, normal log-densities.
#include "ops/tensors.h"

namespace flowkern {
namespace {

// Calls f(begin, end) on ranges of rows of about 16,384 elements.
template <class F>
void parallel_rows(int64_t rows, int64_t columns, const F& f) {
  const int64_t step = std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1));
  parallel((rows + step - 1) / step, [&](int64_t i) { f(i * step, std::min(rows, (i + 1) * step)); });
}

// The transformed feature of every column of parameters: every `step`-th from `begin` on, or as the table says.
std::vector<int64_t> transformed_features(const std::optional<Tensor>& place, int64_t begin, int64_t step,
                                          int64_t count, int64_t width) {
  std::vector<int64_t> features(count, -1);
  if (!place) {
    STD_TORCH_CHECK(count == 0 || (begin >= 0 && begin + (count - 1) * step < width), "coupling: no such features");
    for (int64_t j = 0; j < count; ++j) features[j] = begin + j * step;
    return features;
  }
  const int64_t* column = const_data<int64_t>(*place);
  int64_t found = 0;
  for (int64_t d = 0; d < width; ++d) {
    if (column[d] < 0) continue;
    STD_TORCH_CHECK(column[d] < count && features[column[d]] < 0, "transformed: expected each column from 0 to ",
                    count - 1, " once and -1 elsewhere, got ", column[d], " for feature ", d);
    features[column[d]] = d;
    ++found;
  }
  STD_TORCH_CHECK(found == count, "transformed: expected ", count, " features with a column, got ", found);
  return features;
}

// Serves `affine` too: step 0 says that every feature is transformed.
std::tuple<Tensor, Tensor> coupling(Tensor x, Tensor shift, Tensor raw, std::optional<Tensor> place, int64_t begin,
                                    int64_t step, int64_t count, bool inverse, int64_t scale, int64_t placement,
                                    double c0, double c1) {
  const UnivariateMap map = univariate_map(scale, placement, c0, c1);
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const int64_t rows = x.size(0), columns = x.size(1);
    Tensor z = empty<T>({rows, columns}), log_det = empty<T>({rows});
    const auto features = transformed_features(place, begin, step, step ? count : 0, columns);
    parallel_rows(rows, columns, [&](int64_t first, int64_t last) {
      const Matrix<const T> in[] = {matrix<T>(x), matrix<T>(shift), matrix<T>(raw)};
      if (step == 0)
        return kernels<T>().affine(map, inverse, in[0], in[1], in[2], columns, data<T>(z), data<T>(log_det), first,
                                   last);
      kernels<T>().coupling(map, inverse, in[0], in[1], in[2], {features.data(), count, columns}, data<T>(z),
                            data<T>(log_det), static_cast<T*>(scratch(3 * columns * sizeof(T))), first, last);
    });
    return {z, log_det};
  });
}

std::tuple<Tensor, Tensor, Tensor> coupling_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor shift, Tensor raw,
                                                     std::optional<Tensor> place, int64_t begin, int64_t step,
                                                     int64_t count, bool rebuild, bool inverse, int64_t scale,
                                                     int64_t placement, double c0, double c1) {
  const UnivariateMap map = univariate_map(scale, placement, c0, c1);
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const int64_t rows = x.size(0), columns = x.size(1), parameters = step ? count : columns;
    Tensor g_x = empty<T>({rows, columns}), g_shift = empty<T>({rows, parameters}),
           g_raw = empty<T>({rows, parameters});
    const auto features = transformed_features(place, begin, step, step ? count : 0, columns);
    parallel_rows(rows, columns, [&](int64_t first, int64_t last) {
      const Matrix<const T> in[] = {matrix<T>(x), matrix<T>(shift), matrix<T>(raw), matrix<T>(g_z),
                                    matrix<T>(g_log_det)};
      if (step == 0)
        return kernels<T>().affine_backward(map, rebuild, inverse, in[0], in[1], in[2], in[3], in[4], columns,
                                            data<T>(g_x), data<T>(g_shift), data<T>(g_raw), first, last);
      kernels<T>().coupling_backward(map, rebuild, inverse, in[0], in[1], in[2], in[3], in[4],
                                     {features.data(), count, columns}, data<T>(g_x), data<T>(g_shift), data<T>(g_raw),
                                     static_cast<T*>(scratch(3 * columns * sizeof(T))), first, last);
    });
    return {g_x, g_shift, g_raw};
  });
}

Tensor log_det(Tensor log_scale) {
  return for_dtype(log_scale, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = log_scale.size(0), columns = log_scale.size(1);
    Tensor out = empty<T>({rows});
    parallel_rows(rows, columns, [&](int64_t begin, int64_t end) {
      kernels<T>().log_det(matrix<T>(log_scale), columns, data<T>(out), begin, end);
    });
    return out;
  });
}

Tensor normal_log_prob(Tensor z, Tensor log_det) {
  return for_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = z.size(0), columns = z.size(1);
    Tensor out = empty<T>({rows});
    parallel_rows(rows, columns, [&](int64_t begin, int64_t end) {
      kernels<T>().normal_log_prob(matrix<T>(z), matrix<T>(log_det), columns, data<T>(out), begin, end);
    });
    return out;
  });
}

}  // namespace
}  // namespace flowkern

#define FK_FEATURES "Tensor? place, int begin, int step, int count"

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def("coupling(Tensor x, Tensor shift, Tensor raw, " FK_FEATURES ", bool inverse, " FK_MAP ") -> (Tensor, Tensor)");
  m.def("coupling_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor shift, Tensor raw, " FK_FEATURES
        ", bool rebuild, bool inverse, " FK_MAP ") -> (Tensor, Tensor, Tensor)");
  m.def("log_det(Tensor log_scale) -> Tensor");
  m.def("normal_log_prob(Tensor z, Tensor log_det) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("coupling", TORCH_BOX(&coupling));
  m.impl("coupling_backward", TORCH_BOX(&coupling_backward));
  m.impl("log_det", TORCH_BOX(&log_det));
  m.impl("normal_log_prob", TORCH_BOX(&normal_log_prob));
}

// The operators on rows: univariate maps of some or all features, sums of log-scales, normal log-densities.
#include "cpu/rows/kernels.h"
#include "ops/tensors.h"

namespace flowkern {
namespace {

// Calls f(begin, end) on ranges of rows of about 16,384 elements.
template <class F>
void parallel_rows(int64_t rows, int64_t columns, const F& f) {
  const int64_t step = std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1));
  parallel_ranges(rows, step, kParallelWork, f);
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

template <class T>
CouplingScratch<T> coupling_scratch(int parameters, int64_t columns) {
  const size_t lists = parameters * (sizeof(Matrix<const T>) + sizeof(T*));
  char* memory = static_cast<char*>(scratch(lists + 3 * columns * sizeof(T)));
  const auto matrices = reinterpret_cast<Matrix<const T>*>(memory);
  return {reinterpret_cast<T*>(memory + lists), matrices, reinterpret_cast<T**>(matrices + parameters)};
}

template <class T>
std::vector<Matrix<const T>> matrices(const Tensors& tensors, const UnivariateMap& map) {
  STD_TORCH_CHECK(static_cast<int>(tensors.size()) == map.count, "flowkern: the parameters do not belong to this map");
  std::vector<Matrix<const T>> out;
  for (const Tensor& t : tensors) out.push_back(matrix<T>(t));
  return out;
}

// Serves `affine` too: step 0 says that every feature is transformed.
std::tuple<Tensor, Tensor> coupling(Tensor x, Tensors parameters, std::optional<Tensor> place, int64_t begin,
                                    int64_t step, int64_t count, bool inverse, Tensor univariate) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const Map<T> map = univariate_map<T>(univariate);
    const int64_t rows = x.size(0), columns = x.size(1);
    Tensor z = empty<T>({rows, columns}), log_det = empty<T>({rows});
    const auto features = transformed_features(place, begin, step, step ? count : 0, columns);
    const auto in = matrices<T>(parameters, map.map);
    parallel_rows(rows, columns, [&](int64_t first, int64_t last) {
      if (step == 0)
        return map.kernels->rows(map.map, inverse, matrix<T>(x), in.data(), columns, data<T>(z), data<T>(log_det),
                                 first, last);
      row_kernels<T>().coupling(map, inverse, matrix<T>(x), in.data(), {features.data(), count, columns}, data<T>(z),
                                data<T>(log_det), coupling_scratch<T>(map.map.count, columns), first, last);
    });
    return {z, log_det};
  });
}

std::tuple<Tensor, Tensors> coupling_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensors parameters,
                                              std::optional<Tensor> place, int64_t begin, int64_t step, int64_t count,
                                              bool rebuild, bool inverse, Tensor univariate) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensors> {
    using T = decltype(zero);
    const Map<T> map = univariate_map<T>(univariate);
    const int64_t rows = x.size(0), columns = x.size(1);
    Tensor g_x = empty<T>({rows, columns});
    Tensors g_parameters;
    std::vector<T*> out;
    for (int i = 0; i < map.map.count; ++i) {
      g_parameters.push_back(empty<T>({rows, step ? count : columns}));
      out.push_back(data<T>(g_parameters.back()));
    }
    const auto features = transformed_features(place, begin, step, step ? count : 0, columns);
    const auto in = matrices<T>(parameters, map.map);
    parallel_rows(rows, columns, [&](int64_t first, int64_t last) {
      if (step == 0)
        return map.kernels->rows_backward(map.map, rebuild, inverse, matrix<T>(x), in.data(), matrix<T>(g_z),
                                          matrix<T>(g_log_det), columns, data<T>(g_x), out.data(), first, last);
      row_kernels<T>().coupling_backward(map, rebuild, inverse, matrix<T>(x), in.data(), matrix<T>(g_z),
                                         matrix<T>(g_log_det), {features.data(), count, columns}, data<T>(g_x),
                                         out.data(), coupling_scratch<T>(map.map.count, columns), first, last);
    });
    return {g_x, g_parameters};
  });
}

// Calls f(begin, end, scratch) on ranges of elements: whole tiles.
template <class T, class F>
void parallel_splines(int64_t elements, int64_t parameters, const F& f) {
  constexpr int64_t kElements = 1024, kWorkOfAParameter = 16;  // multiply-adds that its exponential is worth
  parallel_ranges(elements, kElements, elements * parameters * kWorkOfAParameter, [&](int64_t begin, int64_t end) {
    f(begin, end, static_cast<T*>(scratch(row_kernels<T>().spline_scratch(parameters) * sizeof(T))));
  });
}

template <class T>
SplineElements<T> spline_elements(const Tensor& x, const Tensors& parameters, const UnivariateMap& map) {
  SplineElements<T> elements = {matrix<T>(x), {}, static_cast<int>(parameters.size()), {}};
  STD_TORCH_CHECK(elements.kinds <= SplineElements<T>::kMostKinds, "flowkern: a spline has no more than four kinds of ",
                  "parameters");
  int64_t count = 0;
  for (int i = 0; i < elements.kinds; ++i) {
    elements.parameters[i] = matrix<T>(parameters[i]);
    count += elements.counts[i] = parameters[i].size(1);
  }
  STD_TORCH_CHECK(count == map.count, "flowkern: the parameters do not belong to this map");
  return elements;
}

std::tuple<Tensor, Tensor> spline(Tensor x, Tensors parameters, bool inverse, Tensor univariate) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const Map<T> map = univariate_map<T>(univariate);
    const auto elements = spline_elements<T>(x, parameters, map.map);
    Tensor z = empty<T>({x.size(0)}), log_slope = empty<T>({x.size(0)});
    parallel_splines<T>(x.size(0), map.map.count, [&](int64_t begin, int64_t end, T* memory) {
      row_kernels<T>().spline(map, inverse, elements, data<T>(z), data<T>(log_slope), memory, begin, end);
    });
    return {z, log_slope};
  });
}

std::tuple<Tensor, Tensors> spline_backward(Tensor g_z, Tensor g_log_slope, Tensor x, Tensors parameters, bool inverse,
                                            Tensor univariate) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensors> {
    using T = decltype(zero);
    const Map<T> map = univariate_map<T>(univariate);
    const auto elements = spline_elements<T>(x, parameters, map.map);
    Tensor g_x = empty<T>({x.size(0)});
    Tensors g_parameters;
    std::vector<T*> out;
    for (int i = 0; i < elements.kinds; ++i) {
      g_parameters.push_back(empty<T>({x.size(0), elements.counts[i]}));
      out.push_back(data<T>(g_parameters[i]));
    }
    parallel_splines<T>(x.size(0), map.map.count, [&](int64_t begin, int64_t end, T* memory) {
      row_kernels<T>().spline_backward(map, inverse, elements, matrix<T>(g_z), matrix<T>(g_log_slope), data<T>(g_x),
                                       out.data(), memory, begin, end);
    });
    return {g_x, g_parameters};
  });
}

Tensor log_det(Tensor log_scale) {
  return for_dtype(log_scale, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = log_scale.size(0), columns = log_scale.size(1);
    Tensor out = empty<T>({rows});
    parallel_rows(rows, columns, [&](int64_t begin, int64_t end) {
      row_kernels<T>().log_det(matrix<T>(log_scale), columns, data<T>(out), begin, end);
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
      row_kernels<T>().normal_log_prob(matrix<T>(z), matrix<T>(log_det), columns, data<T>(out), begin, end);
    });
    return out;
  });
}

}  // namespace
}  // namespace flowkern

#define FK_SPLINES "Tensor x, Tensor[] parameters, bool inverse, Tensor map"
#define FK_FEATURES "Tensor? place, int begin, int step, int count"

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def("coupling(Tensor x, Tensor[] parameters, " FK_FEATURES ", bool inverse, Tensor map) -> (Tensor, Tensor)");
  m.def("coupling_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor[] parameters, " FK_FEATURES
        ", bool rebuild, bool inverse, Tensor map) -> (Tensor, Tensor[])");
  m.def("spline(" FK_SPLINES ") -> (Tensor, Tensor)");
  m.def("spline_backward(Tensor g_z, Tensor g_log_slope, " FK_SPLINES ") -> (Tensor, Tensor[])");
  m.def("log_det(Tensor log_scale) -> Tensor");
  m.def("normal_log_prob(Tensor z, Tensor log_det) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("coupling", TORCH_BOX(&coupling));
  m.impl("coupling_backward", TORCH_BOX(&coupling_backward));
  m.impl("spline", TORCH_BOX(&spline));
  m.impl("spline_backward", TORCH_BOX(&spline_backward));
  m.impl("log_det", TORCH_BOX(&log_det));
  m.impl("normal_log_prob", TORCH_BOX(&normal_log_prob));
}

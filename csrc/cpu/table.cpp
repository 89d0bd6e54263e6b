// The kernel table of one instruction set.
#include "cpu/affine.h"

namespace flowkern::FK_ISA {

template <class T>
void pack(PlanView, const Matrix<const T>*, const Matrix<const T>*, const uint8_t*, T*, int, int64_t, int64_t);
template <class T, int R>
void masked_mlp(const Network<T>&, Matrix<const T>, T*, T*, int64_t, T*);
template <class T, int R>
void autoregressive(const Network<T>&, const UnivariateMap&, Matrix<const T>, T*, T*, T*, int64_t, T*);
template <class T, int R>
void autoregressive_inverse(const Network<T>&, const UnivariateMap&, Matrix<const T>, T*, T*, T*, int64_t, T*);
template <class T>
void masked_mlp_backward(const Network<T>&, const TileBackward<T>&, int64_t, T*);
template <class T>
void autoregressive_backward(const Network<T>&, const UnivariateMap&, const TileBackward<T>&, int64_t, T*);
template <class T>
void autoregressive_inverse_backward(const Network<T>&, const UnivariateMap&, const TileBackward<T>&, int64_t, T*);
template <class T>
void weight_gradient(const WeightGradient<T>&, int, int64_t, int64_t, int64_t);
template <class T>
void unpack(const WeightGradient<T>&, int, int64_t, int64_t);
template <class T>
void coupling(const UnivariateMap&, bool, Matrix<const T>, Matrix<const T>, Matrix<const T>, const Transformed&, T*, T*,
              T*, int64_t, int64_t);
template <class T>
void coupling_backward(const UnivariateMap&, bool, bool, Matrix<const T>, Matrix<const T>, Matrix<const T>,
                       Matrix<const T>, Matrix<const T>, const Transformed&, T*, T*, T*, T*, int64_t, int64_t);
template <class T>
void log_det(Matrix<const T>, int64_t, T*, int64_t, int64_t);
template <class T>
void normal_log_prob(Matrix<const T>, Matrix<const T>, int64_t, T*, int64_t, int64_t);

template <class T>
constexpr Kernels<T> kTable = {
    kTileRows<T>,
    {1, kSmallRows<T>},
    &pack<T>,
    {&masked_mlp<T, 1>, &masked_mlp<T, kSmallRows<T>>, &masked_mlp<T, kTileRows<T>>},
    {&autoregressive<T, 1>, &autoregressive<T, kSmallRows<T>>, &autoregressive<T, kTileRows<T>>},
    {&autoregressive_inverse<T, 1>, &autoregressive_inverse<T, kSmallRows<T>>,
     &autoregressive_inverse<T, kTileRows<T>>},
    &masked_mlp_backward<T>,
    &autoregressive_backward<T>,
    &autoregressive_inverse_backward<T>,
    &weight_gradient<T>,
    &unpack<T>,
    &affine<T>,
    &affine_backward<T>,
    &coupling<T>,
    &coupling_backward<T>,
    &log_det<T>,
    &normal_log_prob<T>,
};

extern const Kernels<float>& kFloat;
extern const Kernels<double>& kDouble;
const Kernels<float>& kFloat = kTable<float>;
const Kernels<double>& kDouble = kTable<double>;

}  // namespace flowkern::FK_ISA

"""Standard-normal log-density of each row plus a log-determinant: the row reduction of log_det.py with another summand."""

from flowkern.kernels.log_det import reduce_rows


def normal_log_prob(z, log_det):
    """log N(z; 0, I) + log_det for a matrix z (rows, columns) and a vector log_det (rows,)."""
    return reduce_rows(z, log_det)

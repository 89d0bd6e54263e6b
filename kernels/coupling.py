"""A coupling layer's map: the affine kernels, in which the features that pass are copied."""

from flowkern.kernels.affine import affine, affine_gradients

coupling, coupling_gradients = affine, affine_gradients

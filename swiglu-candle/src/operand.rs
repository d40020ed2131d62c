//! What may enter the op: candle's tensors checked against each other, and their strides as core has them.

use candle_core::{DType, DeviceLocation, Layout as Strides, Result, Shape, Tensor, bail};
use swiglu_core::{Layout, Orientation};

/// Where a matrix lies in the storage of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of its first element.
    pub(crate) offset: usize,
    /// Its geometry from there.
    pub(crate) layout: Layout,
}

/// `[.., n]` as the matrix `[rows, n]` that it is in memory; `None` when it has to be copied to be one.
pub(crate) fn rows(strides: &Strides) -> Option<Place> {
    let (cols, leading) = strides.dims().split_last()?;
    let (col_stride, leading_strides) = strides.stride().split_last()?;
    if *cols > 1 && *col_stride != 1 {
        return None;
    }
    // From the inside out; a dimension of 1 has no stride to speak of.
    let mut outer = leading.iter().zip(leading_strides).rev().filter(|(dim, _)| **dim != 1);
    let (mut rows, row_stride) = outer.next().map_or((1, *cols), |(dim, stride)| (*dim, *stride));
    for (dim, stride) in outer {
        if *stride != rows.checked_mul(row_stride)? {
            return None;
        }
        rows = rows.checked_mul(*dim)?;
    }
    let layout = if rows == 0 { Layout::dense(0, *cols) } else { Layout::strided(rows, *cols, row_stride) };
    Some(Place { offset: strides.start_offset(), layout: layout.ok()? })
}

/// The tensor, or a copy of it, with [`rows`].
pub(crate) fn as_rows(tensor: &Tensor) -> Result<Tensor> {
    if rows(tensor.layout()).is_some() { Ok(tensor.clone()) } else { tensor.contiguous() }
}

/// Weights `[n, I]` as they are in memory: such rows, or, where the tensor is a transpose, those of `[I, n]`.
pub(crate) fn weights(strides: &Strides, orientation: Orientation) -> Option<Place> {
    match orientation {
        Orientation::OutIn => rows(strides),
        Orientation::InOut => rows(&strides.transpose(0, 1).ok()?),
    }
}

/// The orientation in which all these weights can be taken where they lie.
pub(crate) fn orientation(weights_of: &[&Tensor]) -> Option<Orientation> {
    [Orientation::OutIn, Orientation::InOut]
        .into_iter()
        .find(|&orientation| weights_of.iter().all(|w| weights(w.layout(), orientation).is_some()))
}

/// A tensor with its name in messages.
pub(crate) type Named<'a> = (&'static str, &'a Tensor);

/// Refuses a first operand of a kind that the op does not run on, and others of another kind than the first.
pub(crate) fn check_kind(first: Named<'_>, others: &[Named<'_>]) -> Result<()> {
    let (name, tensor) = first;
    let (dtype, location) = (tensor.dtype(), tensor.device().location());
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        bail!("swiglu: {name} has dtype {dtype:?}, expected F32, F16 or BF16");
    }
    check_location(name, location)?;
    for (other, tensor) in others {
        if tensor.dtype() != dtype {
            bail!("swiglu: {other} has dtype {:?}, {name} has {dtype:?}", tensor.dtype());
        }
        if tensor.device().location() != location {
            bail!("swiglu: {other} is on {:?}, {name} on {location:?}", tensor.device().location());
        }
    }
    Ok(())
}

fn check_location(name: &'static str, location: DeviceLocation) -> Result<()> {
    match location {
        DeviceLocation::Cpu => Ok(()),
        DeviceLocation::Cuda { .. } if cfg!(feature = "cuda") => Ok(()),
        DeviceLocation::Cuda { .. } => {
            bail!("swiglu: {name} is on {location:?}, for which swiglu-candle needs its feature `cuda`")
        }
        DeviceLocation::Metal { .. } => {
            bail!("swiglu: {name} is on {location:?}, expected a tensor of the CPU or of a CUDA device")
        }
    }
}

/// I: the last dimension of x.
pub(crate) fn in_features(x: &Tensor) -> Result<usize> {
    match x.dims() {
        [.., _, in_features] => Ok(*in_features),
        _ => bail!("swiglu: x has shape {:?}, expected [.., in_features] of 2 dimensions or more", x.shape()),
    }
}

/// Refuses a tensor of another shape.
pub(crate) fn check_shape((name, tensor): Named<'_>, expected: impl Into<Shape>) -> Result<()> {
    let expected = expected.into();
    if tensor.shape() == &expected {
        return Ok(());
    }
    bail!("swiglu: {name} has shape {:?}, expected {expected:?}", tensor.shape())
}

/// Rows of a weight matrix.
pub(crate) fn out_features((name, w): Named<'_>) -> Result<usize> {
    match w.dims() {
        [out_features, _] => Ok(*out_features),
        _ => bail!("swiglu: {name} has shape {:?}, expected [out_features, in_features]", w.shape()),
    }
}

/// The shape of z: that of x with D for I.
pub(crate) fn output_shape(x: &Shape, hidden: usize) -> Shape {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = hidden;
    }
    Shape::from(dims)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strides(dims: &[usize], stride: &[usize], offset: usize) -> Strides {
        Strides::new(Shape::from(dims), stride.to_vec(), offset)
    }

    fn strided(rows: usize, cols: usize, row_stride: usize) -> Layout {
        Layout::strided(rows, cols, row_stride).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn leading_dimensions_with_one_stride_are_rows_in_place() {
        let whole = rows(&Strides::contiguous((2, 3, 5)));
        assert_eq!(whole, Some(Place { offset: 0, layout: strided(6, 5, 5) }));
        let narrowed = rows(&strides(&[2, 3, 5], &[24, 8, 1], 2));
        assert_eq!(narrowed, Some(Place { offset: 2, layout: strided(6, 5, 8) }));
        let ones = rows(&strides(&[1, 3, 1, 5], &[7, 8, 99, 1], 0));
        assert_eq!(ones, Some(Place { offset: 0, layout: strided(3, 5, 8) }));
        assert_eq!(rows(&Strides::contiguous((1, 5))), Some(Place { offset: 0, layout: strided(1, 5, 5) }));
        let empty = rows(&Strides::contiguous((2, 0, 5)));
        assert_eq!(empty.map(|place| place.layout.shape()), Some((0, 5)));
    }

    #[test]
    fn what_is_no_matrix_in_memory_is_copied() {
        assert_eq!(rows(&strides(&[4, 5], &[1, 4], 0)), None, "a transpose");
        assert_eq!(rows(&strides(&[4, 5], &[0, 1], 0)), None, "a row for all");
        assert_eq!(rows(&strides(&[4, 5], &[3, 1], 0)), None, "rows that overlap");
        assert_eq!(rows(&strides(&[2, 3, 5], &[5, 10, 1], 0)), None, "swapped leading dimensions");
        assert_eq!(rows(&strides(&[2, 3, 5], &[30, 5, 1], 0)), None, "a part of the middle");
    }

    #[test]
    fn a_transpose_of_weights_is_taken_in_place() {
        let transpose = strides(&[4, 6], &[1, 10], 3);
        assert_eq!(weights(&transpose, Orientation::OutIn), None);
        let place = Place { offset: 3, layout: strided(6, 4, 10) };
        assert_eq!(weights(&transpose, Orientation::InOut), Some(place));
    }

    #[test]
    fn other_devices_are_named() {
        assert!(check_location("x", DeviceLocation::Cpu).is_ok());
        let refused =
            |location| check_location("x", location).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused(DeviceLocation::Metal { gpu_id: 1 }).contains("x is on Metal { gpu_id: 1 }"));
        let cuda = refused(DeviceLocation::Cuda { gpu_id: 0 });
        assert_eq!(cuda.contains("feature `cuda`"), !cfg!(feature = "cuda"), "{cuda}");
    }
}

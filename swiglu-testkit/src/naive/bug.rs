//! The bugs that [`Naive`](super::Naive) can be given: those that kernels of this op really have.

use crate::catalogue::catalogue;

catalogue! {
    /// A seeded bug of the arithmetic. The checks must notice every one of them.
    Bug {
        /// The last k-term of each pre-activation is missing.
        DropLastTerm,
        /// The k-terms 16..24 of each pre-activation are missing.
        DropSlab,
        /// The k-terms from 256 on are missing: no loop over k-blocks.
        DropPast256,
        /// The last row of z is not written.
        SkipLastRow,
        /// The last column of z is not written.
        SkipLastColumn,
        /// The last row of z is not written when it lies in an incomplete 8-row tile.
        SkipRowOfTail,
        /// The gate projection reads the up weights and the reverse.
        SwapHalves,
        /// The gate function gets g and u in the wrong order.
        GateOnUp,
        /// The bias is ignored.
        NoBias,
        /// The bias is added twice.
        BiasTwice,
        /// The gate half of the bias is added to both halves.
        BiasOfGate,
        /// Backward that computes the pre-activations again forgets the bias.
        RecomputeNoBias,
        /// Sums of the forward pass are kept in bf16.
        Bf16Accumulator,
        /// Pre-activations are rounded to the element type before the gate.
        RoundBeforeGate,
        /// Pre-activations are rounded to bf16 before the gate, in f32 too.
        Bf16BeforeGate,
        /// Square OutIn weights are read as InOut.
        SquareIgnoresOrientation,
        /// Weights with alternating gate and up rows are read as packed.
        InterleavedAsPacked,
        /// The old contents of z are where the sum starts.
        StaleAccumulator,
        /// Terms with a zero factor are skipped, so that 0 * NaN is 0.
        SkipZeros,
        /// Rows of an incomplete 8-row tile are summed in another order: bits depend on the batch.
        OrderByTile,
        /// The summation order changes from call to call.
        OrderByCall,
        /// The sigmoid is 1 / (1 + exp(-g)) and multiplied by g: NaN at -inf.
        PlainSilu,
        /// The sigmoid is computed with a fast exponential of three correct digits.
        CoarseExp,
        /// The clamp of the clamped gate is ignored.
        NoClamp,
        /// The tanh form of GELU stands for the exact one.
        TanhForErf,
        /// Results are truncated to 16 bits instead of rounded.
        TruncateStore,
        /// An f16 result that overflows becomes the largest number instead of infinity.
        SaturateStore,
        /// Subnormal results become zero.
        FlushSubnormals,
        /// z is saved in the place of the gate pre-activation.
        SaveZ,
        /// The halves of the saved pre-activations are swapped.
        SaveSwapped,
        /// Pre-activations are saved without their bias.
        SaveWithoutBias,
        /// dG lacks the term g * (1 - s) of SiLU's derivative.
        NoSlopeTerm,
        /// The derivative of ReLU at 0 is 1.
        ReluSlope,
        /// dG and dU are swapped.
        SwapGradients,
        /// The last column of dy is missing where dz comes from it.
        ProjectedMissesLastOutput,
        /// dX is that of the gate half alone.
        DxGateOnly,
        /// The up term of dX has the wrong sign.
        DxWrongSign,
        /// The last hidden unit is missing in dX.
        DxMissesLastUnit,
        /// dX is written where it should be added.
        DxOverwrites,
        /// dX is added where it should be written.
        DxAdds,
        /// The last row of the batch is missing in dWf.
        DwfMissesLastRow,
        /// dWf is written where it should be added.
        DwfOverwrites,
        /// dWf is added where it should be written.
        DwfAdds,
        /// dWf keeps its old contents when the batch is empty.
        DwfForgotWhenEmpty,
        /// The halves of dWf are swapped.
        DwfSwapped,
        /// dWf is rounded to the element type on its way to an f32 target.
        F32TargetRounded,
        /// dbias sums even rows only.
        DbiasEvenRows,
        /// dbias is written where it should be added.
        DbiasOverwrites,
        /// The logarithm of the loss forgets the maximum that was subtracted.
        LossForgetsMaximum,
        /// The gradient of the loss is that of the sum, not of the mean.
        LossGradientOfSum,
        /// The last of equal logits counts as the largest.
        LastOfEquals,
        /// A label past the last class is taken for the last class.
        LabelClamped,
        /// Gathered rows are the first ones, in order.
        GatherInOrder,
        /// Weight decay is added to the gradient instead of being decoupled.
        CoupledDecay,
        /// AdamW does not correct the bias of its moments.
        NoBiasCorrection,
        /// AdamW steps the 16-bit parameter and forgets the master copy.
        MasterForgotten,
        /// The product reads a transposed left factor as it is when it is square.
        SquareIgnoresTranspose,
    }
}

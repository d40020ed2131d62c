//! What a backend is checked for.

mod dense;
mod differential;
mod errors;
mod exact;
mod layers;
mod metamorphic;
mod repeat;
mod special;

pub use dense::dense;
pub use differential::check_case;
pub use errors::errors;
pub use exact::exact_integers;
pub use layers::layers;
pub use metamorphic::metamorphic;
pub use repeat::run_to_run;
pub use special::special_values;

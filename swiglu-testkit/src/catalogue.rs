//! Enums whose variants can be listed and described.

/// An enum with `ALL` and `description`, both from its doc comments.
macro_rules! catalogue {
    ($(#[doc = $about:literal])+ $catalogue:ident { $($(#[doc = $doc:literal])+ $name:ident,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $catalogue {
            $($(#[doc = $doc])+ $name,)+
        }

        impl $catalogue {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What goes wrong, in one line.
            pub fn description(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc,)+).trim_ascii(),)+
                }
            }
        }
    };
}
pub(crate) use catalogue;

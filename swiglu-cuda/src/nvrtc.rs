//! The calls into NVRTC. What makes them sound is said in `loader.rs`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use crate::loader::{Opened, functions, unsigned};
use crate::{ComputeCapability, CudaVersion, Search, Unavailable};

functions! { NvrtcFunctions, "C":
    version = "nvrtcVersion" (*mut c_int, *mut c_int) -> c_int;
    architecture_count = "nvrtcGetNumSupportedArchs" (*mut c_int) -> c_int;
    architectures = "nvrtcGetSupportedArchs" (*mut c_int) -> c_int;
    create = "nvrtcCreateProgram"
        (*mut *mut c_void, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> c_int;
    compile = "nvrtcCompileProgram" (*mut c_void, c_int, *const *const c_char) -> c_int;
    cubin_size = "nvrtcGetCUBINSize" (*mut c_void, *mut usize) -> c_int;
    cubin = "nvrtcGetCUBIN" (*mut c_void, *mut c_char) -> c_int;
    log_size = "nvrtcGetProgramLogSize" (*mut c_void, *mut usize) -> c_int;
    log = "nvrtcGetProgramLog" (*mut c_void, *mut c_char) -> c_int;
    destroy = "nvrtcDestroyProgram" (*mut *mut c_void) -> c_int;
    error_string = "nvrtcGetErrorString" (c_int) -> *const c_char;
}

/// `NVRTC_ERROR_OUT_OF_MEMORY`, `_INVALID_INPUT` and `_INVALID_OPTION`.
const OUT_OF_MEMORY: c_int = 1;
const INVALID_INPUT: c_int = 3;
const INVALID_OPTION: c_int = 5;

/// NVRTC with all of its functions found.
pub(crate) struct Nvrtc {
    functions: NvrtcFunctions,
    path: PathBuf,
}

impl Nvrtc {
    pub(crate) fn open(search: &Search) -> Result<Self, Unavailable> {
        let library = Opened::nvrtc(search).map_err(|tried| Unavailable::NvrtcMissing { tried })?;
        let path = library.file_with("nvrtcVersion");
        match NvrtcFunctions::resolve(&library) {
            Ok(functions) => Ok(Self { functions, path }),
            Err(symbol) => Err(Unavailable::NvrtcBroken { path, symbol }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn version(&self) -> Result<CudaVersion, Unavailable> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: type and lifetime as in `loader.rs`; each pointer is to one live c_int.
        let code = unsafe { (self.functions.version)(&raw mut major, &raw mut minor) };
        available("nvrtcVersion", code)?;
        Ok(CudaVersion { major: unsigned(major), minor: unsigned(minor) })
    }

    /// The architectures it compiles for.
    pub(crate) fn architectures(&self) -> Result<Vec<ComputeCapability>, Unavailable> {
        let mut count = 0;
        // SAFETY: type and lifetime as in `loader.rs`; the pointer is to one live c_int.
        let code = unsafe { (self.functions.architecture_count)(&raw mut count) };
        available("nvrtcGetNumSupportedArchs", code)?;
        let mut numbers = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: type and lifetime as in `loader.rs`; it writes as many c_int as it just counted, and the vector
        // has that many.
        let code = unsafe { (self.functions.architectures)(numbers.as_mut_ptr()) };
        available("nvrtcGetSupportedArchs", code)?;
        // 90 is 9.0, and 121 is 12.1.
        let capability = |n: c_int| ComputeCapability { major: unsigned(n / 10), minor: unsigned(n % 10) };
        Ok(numbers.into_iter().map(capability).collect())
    }

    /// A program that is not compiled yet: its main file, and each file that an `#include` may name.
    pub(crate) fn program(
        &self,
        name: &str,
        text: &str,
        headers: &[(&str, &str)],
    ) -> Result<Program<'_>, Failure> {
        let call = "nvrtcCreateProgram";
        let invalid = || self.failure(call, INVALID_INPUT);
        let name = CString::new(name).map_err(|_| invalid())?;
        let text = CString::new(text).map_err(|_| invalid())?;
        let names = Strings::new(headers.iter().map(|header| header.0)).ok_or_else(invalid)?;
        let texts = Strings::new(headers.iter().map(|header| header.1)).ok_or_else(invalid)?;
        let mut handle = ptr::null_mut();
        // SAFETY: type and lifetime as in `loader.rs`; the first pointer is to one live handle, the others are to C
        // strings and to arrays of as many C strings as the count says.
        let code = unsafe {
            let (count, texts) = (names.count(), texts.pointers.as_ptr());
            let names = names.pointers.as_ptr();
            (self.functions.create)(&raw mut handle, text.as_ptr(), name.as_ptr(), count, texts, names)
        };
        self.check(call, code)?;
        Ok(Program { nvrtc: self, handle, _main: [name, text], _headers: [names, texts] })
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), Failure> {
        if code == 0 { Ok(()) } else { Err(self.failure(call, code)) }
    }

    fn failure(&self, call: &'static str, code: c_int) -> Failure {
        // SAFETY: type and lifetime as in `loader.rs`; every number is allowed.
        let name = unsafe { (self.functions.error_string)(code) };
        if name.is_null() {
            return Failure { call, code, reason: "a code without a name".to_owned() };
        }
        // SAFETY: it returns a pointer to a constant C string in the library, which is never closed.
        let name = unsafe { CStr::from_ptr(name) };
        Failure { call, code, reason: name.to_string_lossy().into_owned() }
    }
}

/// A call of NVRTC that did not give what it was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) call: &'static str,
    /// Its `nvrtcResult`.
    pub(crate) code: i32,
    /// The name of that code, or what was wrong where the code is 0.
    pub(crate) reason: String,
}

/// A program of NVRTC's, destroyed with this value.
pub(crate) struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: *mut c_void,
    /// What it is made of: NVRTC does not say that it copies it.
    _main: [CString; 2],
    _headers: [Strings; 2],
}

impl Program<'_> {
    /// Compiles it to machine code. [`Program::log`] has the reasons where that fails, and the warnings where not.
    pub(crate) fn compile(&mut self, options: &[String]) -> Result<(), Failure> {
        let call = "nvrtcCompileProgram";
        let options = Strings::new(options.iter().map(String::as_str));
        let options = options.ok_or_else(|| self.nvrtc.failure(call, INVALID_OPTION))?;
        // SAFETY: type and lifetime as in `loader.rs`; the program is live, and the pointer is to an array of as many
        // C strings as the count says.
        let code = unsafe {
            (self.nvrtc.functions.compile)(self.handle, options.count(), options.pointers.as_ptr())
        };
        self.nvrtc.check(call, code)
    }

    /// The machine code; at least one byte.
    pub(crate) fn cubin(&mut self) -> Result<Vec<u8>, Failure> {
        let functions = &self.nvrtc.functions;
        let mut bytes = 0;
        // SAFETY: type and lifetime as in `loader.rs`; the program is live, and the pointer is to one live usize,
        // which is C's size_t.
        let code = unsafe { (functions.cubin_size)(self.handle, &raw mut bytes) };
        self.nvrtc.check("nvrtcGetCUBINSize", code)?;
        if bytes == 0 {
            let reason = "there is no machine code".to_owned();
            return Err(Failure { call: "nvrtcGetCUBINSize", code, reason });
        }
        let call = "nvrtcGetCUBIN";
        let mut cubin = zeros(bytes).ok_or_else(|| self.nvrtc.failure(call, OUT_OF_MEMORY))?;
        // SAFETY: type and lifetime as in `loader.rs`; the program is live, it writes as many bytes as it just
        // counted, and the vector has that many.
        let code = unsafe { (functions.cubin)(self.handle, cubin.as_mut_ptr().cast()) };
        self.nvrtc.check(call, code).map(|()| cubin)
    }

    /// What NVRTC said while it compiled; empty where it said nothing or cannot be asked.
    pub(crate) fn log(&mut self) -> String {
        let functions = &self.nvrtc.functions;
        let mut bytes = 0;
        // SAFETY: type and lifetime as in `loader.rs`; the program is live, and the pointer is to one live usize,
        // which is C's size_t.
        let code = unsafe { (functions.log_size)(self.handle, &raw mut bytes) };
        let Some(mut log) = zeros(bytes).filter(|_| code == 0) else { return String::new() };
        // SAFETY: type and lifetime as in `loader.rs`; the program is live, it writes as many bytes as it just
        // counted, and the vector has that many.
        let code = unsafe { (functions.log)(self.handle, log.as_mut_ptr().cast()) };
        if code != 0 {
            return String::new();
        }
        let text = CStr::from_bytes_until_nul(&log).map_or(log.as_slice(), CStr::to_bytes);
        String::from_utf8_lossy(text).trim_end().to_owned()
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: type and lifetime as in `loader.rs`; the pointer is to the handle of a live program, which nothing
        // uses after this. Its answer is of no use: there is nothing else to try.
        unsafe { (self.nvrtc.functions.destroy)(&raw mut self.handle) };
    }
}

/// C strings, and an array of pointers to them.
struct Strings {
    pointers: Vec<*const c_char>,
    /// What the pointers are to.
    _owned: Vec<CString>,
}

impl Strings {
    /// `None` where a text holds a NUL.
    fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Option<Self> {
        let owned: Vec<CString> = texts.map(|text| CString::new(text).ok()).collect::<Option<_>>()?;
        Some(Self { pointers: owned.iter().map(|text| text.as_ptr()).collect(), _owned: owned })
    }

    fn count(&self) -> c_int {
        c_int::try_from(self.pointers.len()).unwrap_or(0)
    }
}

/// `None` where there is no memory for them: the number comes from a library.
fn zeros(bytes: usize) -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes).ok()?;
    buffer.resize(bytes, 0);
    Some(buffer)
}

fn available(call: &'static str, code: c_int) -> Result<(), Unavailable> {
    if code == 0 { Ok(()) } else { Err(Unavailable::NvrtcFailed { call, code }) }
}

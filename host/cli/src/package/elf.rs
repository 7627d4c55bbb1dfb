//! What of a binary decides whether it runs in an image with nothing beside it. (System V ABI, `elf.h`.)

/// The processor by Go's name, or what keeps the binary from running alone.
pub(super) fn static_architecture(binary: &[u8]) -> Result<&'static str, &'static str> {
    /// Segment with the path of the loader.
    const PT_INTERP: u32 = 3;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let part = binary.get(at..at.checked_add(bytes)?)?;
        Some(part.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    // 64 bits, least byte first.
    if !binary.starts_with(b"\x7fELF\x02\x01") {
        return Err("is no binary of Linux on a 64-bit processor");
    }
    let architecture = match number(18, 2) {
        Some(62) => "amd64",
        Some(183) => "arm64",
        _ => return Err("is of a processor that is neither amd64 nor arm64"),
    };
    let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let (Some(start), Some(size), Some(count)) = (start, size, count) else {
        return Err("is cut short");
    };
    for i in 0..count {
        let at = usize::try_from(start.saturating_add(i * size)).unwrap_or(usize::MAX);
        match number(at, 4) {
            None => return Err("is cut short"),
            Some(kind) if kind == u64::from(PT_INTERP) => return Err("is linked dynamically"),
            Some(_) => {}
        }
    }
    Ok(architecture)
}

//! How the command line shows bytes, sizes and tables.

/// Shows UTF-8 as text on one line, with control characters and backslashes escaped; any other
/// bytes as escapes of hexadecimal digits.
pub(crate) fn one_line(bytes: &[u8]) -> String {
    let mut line = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for shown in chunk.valid().chars() {
            if shown.is_control() || shown == '\\' {
                line.extend(shown.escape_default());
            } else {
                line.push(shown);
            }
        }
        line.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    line
}

/// Shows a size in a form that is read at a glance: a few digits and a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _binary if value < 10.0 => format!("{value:.1} {}", UNITS[unit]),
        _binary => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Lays out rows in columns as wide as their widest cell; the first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::text::text_or_hex;

    #[test]
    fn sizes_and_bytes_read_well() {
        assert_eq!(size(17), "17 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(text_or_hex(b"caf\xc3\xa9"), "café");
        assert_eq!(text_or_hex(&[0xff, 1]), "0xff01");
        assert_eq!(one_line("café\t\\ \n".as_bytes()), "café\\t\\\\ \\n");
        assert_eq!(one_line(b"a\xff\x01b"), "a\\xff\\u{1}b");
    }

    #[test]
    fn tables_line_up() {
        let rows = [vec!["a".into(), "bb".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&rows), "a    bb\nccc  d\n");
    }
}

//! Tables for people on the command line: a head line and rows, columns as wide as their widest cell.

/// Lays out `head` and `rows`; two spaces between columns, no trailing space. A row shorter than the head
/// has empty cells. Control characters, which could move the reader's cursor, are shown as `?`.
pub fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
    let mut widths = head.map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    push_line(&mut out, &widths, head.iter().copied());
    for row in &rows {
        push_line(&mut out, &widths, row.iter().map(String::as_str));
    }
    out
}

fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn push_line<'a>(out: &mut String, widths: &[usize], cells: impl Iterator<Item = &'a str>) {
    let start = out.len();
    for (width, cell) in widths.iter().zip(cells) {
        out.push_str(cell);
        out.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
    }
    out.truncate(start + out[start..].trim_end().len());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let rows = [["s1".to_owned(), "voter".to_owned()], ["server-2".to_owned(), "\x1b[31m".to_owned()]];
        assert_eq!(columns(["NAME", "ROLE"], &rows), "NAME      ROLE\ns1        voter\nserver-2  ?[31m\n");
        assert_eq!(columns(["NAME"], &[]), "NAME\n");
    }
}

//! The dashboard of the admin address and the page of `simulate --report`: HTML, CSS and JavaScript
//! without a framework, joined at compile time. Both pages share colours, formats and charts. No
//! part refers to an external resource.
//!
//! - `format.js`: numbers with units; elements without `innerHTML`
//! - `chart.js`: line and area charts as SVG
//! - `live.js`: the connection to the admin address
//! - `fleet.js`, `requests.js`, `plan.js`, `targets.js`, `what_if.js`: one view each
//! - `main.js`: navigation, theme, token; starts the dashboard
//! - `report.js`: draws a report from the data in its page
#![warn(missing_docs)]

/// The page at `/`.
pub const DASHBOARD_HTML: &str = include_str!("dashboard.html");
/// Its styles.
pub const DASHBOARD_CSS: &str = concat!(include_str!("base.css"), include_str!("dashboard.css"));
/// Its script.
pub const DASHBOARD_JS: &str = concat!(
    "\"use strict\";\n",
    include_str!("format.js"),
    include_str!("chart.js"),
    include_str!("live.js"),
    include_str!("headline.js"),
    include_str!("fleet.js"),
    include_str!("requests.js"),
    include_str!("plan.js"),
    include_str!("targets.js"),
    include_str!("what_if.js"),
    include_str!("main.js"),
);

/// Styles of a report.
const REPORT_CSS: &str = concat!(include_str!("base.css"), include_str!("report.css"));
/// Script of a report.
const REPORT_JS: &str = concat!(
    "\"use strict\";\n",
    include_str!("format.js"),
    include_str!("chart.js"),
    include_str!("report.js"),
);

/// Returns a self-contained page that draws `data`, a JSON object as report.js reads it. `title` is
/// plain text.
pub fn report(title: &str, data: &str) -> String {
    // In JSON "<" occurs in strings only. Escaped, it cannot end the script element.
    let data = data.replace('<', "\\u003c");
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{}</title><style>{REPORT_CSS}</style></head>\n<body><main id=\"report\"></main>\n\
         <noscript><p>This report is drawn by the script that it contains.</p></noscript>\n\
         <script type=\"application/json\" id=\"data\">{data}</script>\n\
         <script>{REPORT_JS}</script></body></html>\n",
        escape(title)
    )
}

/// Escapes text for use between tags.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Limit on the dashboard, uncompressed.
    const DASHBOARD_MAX: usize = 300_000;

    #[test]
    fn the_dashboard_is_small_and_refers_to_nothing_outside() {
        let all = [DASHBOARD_HTML, DASHBOARD_CSS, DASHBOARD_JS].concat();
        assert!(all.len() < DASHBOARD_MAX, "{} bytes", all.len());
        // The namespace of SVG is an identifier and is not fetched.
        let all = all.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "//cdn", "@import", "innerHTML", "eval("] {
            assert!(!all.contains(outside), "{outside}");
        }
    }

    #[test]
    fn data_and_title_cannot_end_their_elements() {
        let html = report("a <b> & c", "{\"x\":\"</script><!--\"}");
        assert!(html.contains("<title>a &lt;b&gt; &amp; c</title>"));
        assert!(html.contains("{\"x\":\"\\u003c/script>\\u003c!--\"}"));
        assert_eq!(html.matches("</script>").count(), 2);
    }
}

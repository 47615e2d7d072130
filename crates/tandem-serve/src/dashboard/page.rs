//! The page's HTML, style and script, as one: it needs nothing from anywhere else.

/// The whole page.
pub(super) const PAGE: &str = concat!(
    include_str!("../../assets/head.html"),
    "<style>\n",
    include_str!("../../assets/style.css"),
    "</style>\n",
    include_str!("../../assets/body.html"),
    "<script>\n\"use strict\";\n(() => {\n",
    include_str!("../../assets/util.js"),
    include_str!("../../assets/charts.js"),
    include_str!("../../assets/panels.js"),
    include_str!("../../assets/pictures.js"),
    include_str!("../../assets/chat.js"),
    include_str!("../../assets/main.js"),
    "})();\n</script>\n</body>\n</html>\n",
);

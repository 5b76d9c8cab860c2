//! Charts as SVG, each for pages with a light and with a dark ground.
//!
//! They are drawn from the results that the tables are rendered from, and lie in `bench/charts`.

use plotters::prelude::*;

use crate::{
    failure::{Failure, Outcome, write},
    process::root,
};

/// Where charts lie, from the root.
pub(crate) const FOLDER: &str = "bench/charts";

/// A chart by the name of its files.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chart {
    pub(crate) name: &'static str,
    /// What it shows, in a sentence: for who does not see it, and above it where it is not plain.
    pub(crate) title: String,
    pub(crate) content: Content,
}

/// What a chart consists of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// Shares between 0 and 1, one below the other.
    Bars(Vec<(String, f64)>),
    /// Lines through points.
    Lines { axes: [Axis; 2], series: Vec<Series> },
    /// Points of several groups, each in the color of its group.
    Points { axes: [Axis; 2], groups: Vec<Group> },
}

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    pub(crate) name: &'static str,
    pub(crate) scale: Scale,
}

/// What distances on an axis stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Differences between the least and the largest value.
    Between,
    /// Ratios, between powers of two.
    Log,
}

/// A line by its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<[f64; 2]>,
}

/// Points of one color.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

/// A point, with a name if it is written beside it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) name: Option<String>,
    pub(crate) at: [f64; 2],
}

/// Colors of a ground.
struct Theme {
    name: &'static str,
    text: RGBColor,
    grid: RGBColor,
    bar: RGBColor,
}

const THEMES: [Theme; 2] = [
    Theme {
        name: "light",
        text: RGBColor(31, 35, 40),
        grid: RGBColor(208, 215, 222),
        bar: RGBColor(9, 105, 218),
    },
    Theme {
        name: "dark",
        text: RGBColor(201, 209, 217),
        grid: RGBColor(61, 68, 77),
        bar: RGBColor(88, 166, 255),
    },
];

/// Of lines and of groups of points: told apart by who does not see all colors, on both grounds.
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

const WIDTH: u32 = 900;
const HEIGHT: u32 = 420;
const FONT: &str = "sans-serif";
const FONT_SIZE: i32 = 13;

/// Height of a bar with the gap to the next one.
const BAR: i32 = 16;
/// Width of the names of bars, and of their figures.
const NAMES: i32 = 380;
const FIGURES: i32 = 60;

impl Chart {
    /// The lines of a Markdown file that show it.
    #[must_use]
    pub(crate) fn markdown(&self) -> String {
        let file = |theme: &str| format!("{FOLDER}/{}-{theme}.svg", self.name);
        format!(
            "<picture>\n<source media=\"(prefers-color-scheme: dark)\" srcset=\"{}\">\n<img alt=\"{}\" src=\"{}\">\n</picture>",
            file("dark"),
            self.title,
            file("light")
        )
    }

    /// Writes its files.
    ///
    /// # Errors
    ///
    /// If it cannot be drawn or written.
    pub(crate) fn write(&self) -> Outcome {
        THEMES.iter().try_for_each(|theme| {
            let file = root().join(FOLDER).join(format!("{}-{}.svg", self.name, theme.name));
            write(&file, self.svg(theme)?)
        })
    }

    fn svg(&self, theme: &Theme) -> Outcome<String> {
        let mut svg = String::new();
        let height = match &self.content {
            Content::Bars(bars) => (bars.len() as u32 + 3) * BAR as u32,
            Content::Lines { .. } | Content::Points { .. } => HEIGHT,
        };
        {
            let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
            let drawn = match &self.content {
                Content::Bars(bars) => draw_bars(&area, theme, bars),
                Content::Lines { axes, series } => draw_lines(&area, theme, axes, series),
                Content::Points { axes, groups } => draw_points(&area, theme, axes, groups),
            };
            drawn
                .and_then(|()| area.present())
                .map_err(|error| Failure::new(format!("chart {}: {error}", self.name)))?;
        }
        Ok(svg)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw_bars(area: &Area<'_>, theme: &Theme, bars: &[(String, f64)]) -> Drawn {
    let text = || (FONT, FONT_SIZE).into_font().color(&theme.text);
    let full = WIDTH as i32 - NAMES - FIGURES;
    let bottom = (bars.len() as i32 + 1) * BAR;
    for percent in [0, 25, 50, 75, 100] {
        let x = NAMES + full * percent / 100;
        area.draw(&PathElement::new(vec![(x, BAR), (x, bottom)], theme.grid))?;
        area.draw(&Text::new(format!("{percent} %"), (x - 12, 2), text()))?;
    }
    for (i, (name, share)) in bars.iter().enumerate() {
        let y = (i as i32 + 1) * BAR;
        let end = NAMES + (f64::from(full) * share.clamp(0.0, 1.0)) as i32;
        area.draw(&Text::new(name.clone(), (4, y + 1), text()))?;
        let bar = [(NAMES, y + 3), (end, y + BAR - 3)];
        area.draw(&Rectangle::new(bar, theme.bar.filled()))?;
        area.draw(&Text::new(format!("{:.0} %", 100.0 * share), (end + 4, y + 1), text()))?;
    }
    Ok(())
}

/// What an axis shows, with some room.
fn range(axis: &Axis, values: impl Iterator<Item = f64>) -> [f64; 2] {
    let (least, most) =
        values.fold((f64::INFINITY, 0.0_f64), |(least, most), x| (least.min(x), most.max(x)));
    match axis.scale {
        Scale::Between => {
            let room = 0.08 * (most - least);
            [least - room, most + room]
        }
        Scale::Log => [least.log2().floor().exp2(), most.log2().ceil().exp2()],
    }
}

/// Calls `$draw` with a chart of the right kind of axes.
macro_rules! with_axes {
    ($area:expr, $axes:expr, $ranges:expr, $chart:ident => $draw:expr) => {{
        let [[x0, x1], [y0, y1]] = $ranges;
        let mut builder = ChartBuilder::on($area);
        builder.margin(12).x_label_area_size(44).y_label_area_size(64);
        match $axes.each_ref().map(|axis| axis.scale == Scale::Log) {
            [false, false] => {
                let mut $chart = builder.build_cartesian_2d(x0..x1, y0..y1)?;
                $draw
            }
            [true, false] => {
                let x = (x0..x1).log_scale().base(2.0);
                let mut $chart = builder.build_cartesian_2d(x, y0..y1)?;
                $draw
            }
            [false, true] => {
                let y = (y0..y1).log_scale().base(2.0);
                let mut $chart = builder.build_cartesian_2d(x0..x1, y)?;
                $draw
            }
            [true, true] => {
                let (x, y) = ((x0..x1).log_scale().base(2.0), (y0..y1).log_scale().base(2.0));
                let mut $chart = builder.build_cartesian_2d(x, y)?;
                $draw
            }
        }
    }};
}

macro_rules! mesh {
    ($chart:expr, $theme:expr, $axes:expr) => {{
        let text = || (FONT, FONT_SIZE).into_font().color(&$theme.text);
        $chart
            .configure_mesh()
            .axis_style($theme.text)
            .bold_line_style($theme.grid)
            .light_line_style(TRANSPARENT)
            .label_style(text())
            .axis_desc_style(text())
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| short(*y))
            .x_desc($axes[0].name)
            .y_desc($axes[1].name)
            .draw()?;
    }};
}

macro_rules! legend {
    ($chart:expr, $theme:expr, $position:ident) => {
        $chart
            .configure_series_labels()
            .position(SeriesLabelPosition::$position)
            .label_font((FONT, FONT_SIZE).into_font().color(&$theme.text))
            .border_style($theme.grid)
            .draw()
    };
}

fn draw_lines(area: &Area<'_>, theme: &Theme, axes: &[Axis; 2], series: &[Series]) -> Drawn {
    let of = |i: usize| series.iter().flat_map(move |s| s.points.iter().map(move |p| p[i]));
    let ranges = [range(&axes[0], of(0)), range(&axes[1], of(1))];
    with_axes!(area, axes, ranges, chart => {
        mesh!(chart, theme, axes);
        for (series, color) in series.iter().zip(COLORS.iter().cycle()) {
            let points = || series.points.iter().map(|p| (p[0], p[1]));
            chart
                .draw_series(LineSeries::new(points(), color.stroke_width(2)))?
                .label(series.name.clone())
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
            chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
        }
        legend!(chart, theme, UpperLeft)
    })
}

fn draw_points(area: &Area<'_>, theme: &Theme, axes: &[Axis; 2], groups: &[Group]) -> Drawn {
    debug_assert!(groups.len() <= COLORS.len(), "{} groups of points", groups.len());
    let all = || groups.iter().flat_map(|group| &group.points);
    let of = |i: usize| all().map(move |point| point.at[i]);
    let ranges = [range(&axes[0], of(0)), range(&axes[1], of(1))];
    with_axes!(area, axes, ranges, chart => {
        mesh!(chart, theme, axes);
        for (group, color) in groups.iter().zip(COLORS.iter().cycle()) {
            let circle = |(x, y)| Circle::new((x, y), 4, color.filled());
            chart
                .draw_series(group.points.iter().map(|point| circle((point.at[0], point.at[1]))))?
                .label(group.name.clone())
                .legend(move |(x, y)| Circle::new((x + 9, y), 4, color.filled()));
        }
        let mut taken = Vec::new();
        for point in all() {
            if let Some(name) = &point.name {
                let (x, y) = chart.backend_coord(&(point.at[0], point.at[1]));
                let place = place_of(name, [x, y], &mut taken);
                let text = (FONT, FONT_SIZE).into_font().color(&theme.text);
                area.draw(&Text::new(name.clone(), (place[0], place[1]), text))?;
            }
        }
        legend!(chart, theme, UpperRight)
    })
}

/// The upper left corner of a name beside its point, moved up until it meets none of `taken` (corner and width), to which it is added. It is
/// left of a point near the right edge.
fn place_of(name: &str, point: [i32; 2], taken: &mut Vec<([i32; 2], i32)>) -> [i32; 2] {
    // As wide as letters are on average.
    let width = name.chars().count() as i32 * FONT_SIZE / 2;
    let x = if point[0] + 7 + width > WIDTH as i32 { point[0] - 7 - width } else { point[0] + 7 };
    let is_free = |[x, y]: [i32; 2]| {
        taken.iter().all(|&([x0, y0], width0)| {
            x >= x0 + width0 || x + width <= x0 || (y - y0).abs() >= FONT_SIZE
        })
    };
    let corner = |rise: i32| [x, point[1] - FONT_SIZE / 2 - rise];
    // Without room up to the edge it lies on another.
    let free = (0..point[1]).map(corner).find(|&corner| is_free(corner));
    let place = free.unwrap_or(corner(0));
    taken.push((place, width));
    place
}

/// A number of an axis.
fn short(x: f64) -> String {
    let text = format!("{x:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(name: &'static str, scale: Scale) -> Axis {
        Axis { name, scale }
    }

    fn chart(content: Content) -> Chart {
        Chart { name: "test", title: "What it shows".to_owned(), content }
    }

    #[test]
    fn every_name_and_figure_is_in_the_drawing() {
        let bars = chart(Content::Bars(vec![("row a".to_owned(), 0.5), ("row b".to_owned(), 1.2)]));
        let series = |name: &str, points: &[[f64; 2]]| Series {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        let all = vec![
            series("first", &[[1.0, 1.0], [64.0, 8.0]]),
            series("second", &[[1.0, 1.0], [64.0, 30.0]]),
        ];
        let lines = |logs: [bool; 2]| {
            let scale = |is_log| if is_log { Scale::Log } else { Scale::Between };
            let axes = [axis("rows", scale(logs[0])), axis("times", scale(logs[1]))];
            chart(Content::Lines { axes, series: all.clone() })
        };
        let points = chart(Content::Points {
            axes: [axis("bits", Scale::Between), axis("perplexity", Scale::Between)],
            groups: vec![Group {
                name: "floats".to_owned(),
                points: vec![
                    Point { name: Some("MXFP4".to_owned()), at: [4.25, 16.7] },
                    Point { name: None, at: [16.0, 16.0] },
                ],
            }],
        });
        for theme in &THEMES {
            let svg = bars.svg(theme).unwrap();
            for word in ["row a", "row b", "50 %", "120 %", "100 %"] {
                assert!(svg.contains(word), "{word}: {svg}");
            }
            for logs in [[true, true], [true, false], [false, true], [false, false]] {
                let svg = lines(logs).svg(theme).unwrap();
                for word in ["first", "second", "rows", "times"] {
                    assert!(svg.contains(word), "{word}: {svg}");
                }
            }
            let svg = points.svg(theme).unwrap();
            for word in ["floats", "MXFP4", "perplexity"] {
                assert!(svg.contains(word), "{word}: {svg}");
            }
        }
        assert_ne!(bars.svg(&THEMES[0]).unwrap(), bars.svg(&THEMES[1]).unwrap());
    }

    #[test]
    fn names_do_not_lie_on_each_other() {
        let mut taken = Vec::new();
        let places = [100, 103, 101].map(|y| place_of("a name", [50, y], &mut taken));
        assert_eq!(places, [[57, 94], [57, 81], [57, 68]]);
        let [x, _] = place_of("at the edge", [WIDTH as i32 - 20, 300], &mut taken);
        assert!(x < WIDTH as i32 - 90);
        assert_eq!(place_of("far away", [200, 100], &mut taken), [207, 94]);
    }

    #[test]
    fn both_files_are_named_with_what_they_show() {
        let markdown = chart(Content::Bars(Vec::new())).markdown();
        for part in ["bench/charts/test-dark.svg", "bench/charts/test-light.svg", "What it shows"] {
            assert!(markdown.contains(part), "{markdown}");
        }
    }

    #[test]
    fn axes_show_all_values_with_some_room() {
        let of = |scale| range(&axis("", scale), [3.0, 10.0].into_iter());
        assert_eq!(of(Scale::Log), [2.0, 16.0]);
        let [least, most] = of(Scale::Between);
        assert!(least < 3.0 && least > 2.0 && most > 10.0 && most < 11.0);
        assert_eq!([short(0.5), short(2.0), short(1024.0)], ["0.5", "2", "1024"]);
    }
}

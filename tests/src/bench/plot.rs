//! Curves as SVG, for numbers whose shape matters.

use anyhow::{Result, anyhow, ensure};
use plotters::prelude::*;

/// A curve: its name in the legend and its points.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What stands at the axes of a plot, each with its unit; both are logarithmic.
pub(crate) struct Axes<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
}

/// The curves in one picture with logarithmic axes.
///
/// # Errors
///
/// No point at all, or one that has no place on a logarithmic axis (0 and below).
pub(crate) fn lines(axes: &Axes, series: &[Series]) -> Result<String> {
    let points = || series.iter().flat_map(|series| &series.points);
    let lies = |value: f64| value.is_finite() && value > 0.0;
    ensure!(points().next().is_some(), "nothing to plot: {}", axes.title);
    ensure!(points().all(|&(x, y)| lies(x) && lies(y)), "not above 0: {}", axes.title);
    let span = |pick: fn(&(f64, f64)) -> f64| {
        let (low, high) = points()
            .map(pick)
            .fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        (low / 1.2)..(high * 1.2)
    };
    let mut text = String::new();
    draw(&mut text, axes, series, [span(|point| point.0), span(|point| point.1)])
        .map_err(|error| anyhow!("{}: {error}", axes.title))?;
    Ok(text)
}

fn draw(
    text: &mut String,
    axes: &Axes,
    series: &[Series],
    [x, y]: [std::ops::Range<f64>; 2],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, (900, 560)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(axes.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    chart.configure_mesh().x_desc(axes.x).y_desc(axes.y).label_style(("sans-serif", 13)).draw()?;
    for (index, series) in series.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let line =
            LineSeries::new(series.points.iter().copied(), color.stroke_width(2)).point_size(3);
        chart
            .draw_series(line)?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .label_font(("sans-serif", 13))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_and_their_names_are_in_the_picture() {
        let axes = Axes { title: "a title", x: "size (bytes)", y: "time (us)" };
        let series = |name: &str, points: &[(f64, f64)]| Series {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        let two = [series("one", &[(1.0, 2.0), (10.0, 20.0)]), series("two", &[(1.0, 5.0)])];
        let text = lines(&axes, &two).unwrap();
        assert!(text.starts_with("<svg") && text.contains("<polyline"), "{text}");
        for name in ["a title", "size (bytes)", "time (us)", "one", "two"] {
            assert!(text.contains(name), "{name}: {text}");
        }
        assert!(lines(&axes, &[series("zero", &[(0.0, 1.0)])]).is_err());
        assert!(lines(&axes, &[]).is_err());
    }
}

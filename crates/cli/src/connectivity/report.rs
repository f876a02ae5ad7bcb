//! What came out: a line per step for people, JSON, and JUnit's XML for machines.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::policies::Test;
use crate::output::Style;

/// The results of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) context: String,
    pub(crate) namespace: String,
    pub(crate) success: bool,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) duration_ms: u64,
    pub(crate) tests: Vec<TestResult>,
}

#[derive(Debug, Serialize)]
pub(crate) struct TestResult {
    pub(crate) name: String,
    pub(crate) scenarios: Vec<ScenarioResult>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ScenarioResult {
    pub(crate) name: String,
    /// Why there was nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<String>,
    pub(crate) actions: Vec<ActionResult>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ActionResult {
    pub(crate) name: String,
    pub(crate) from: String,
    pub(crate) to: String,
    /// How to repeat it.
    pub(crate) command: String,
    pub(crate) success: bool,
    pub(crate) duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Report {
    pub(crate) fn new(
        context: &str,
        namespace: &str,
        took: Duration,
        tests: Vec<TestResult>,
    ) -> Self {
        let mut report = Self {
            context: context.to_owned(),
            namespace: namespace.to_owned(),
            success: false,
            passed: 0,
            failed: 0,
            duration_ms: millis(took),
            tests,
        };
        let failed = report.actions().filter(|action| !action.success).count();
        report.passed = report.actions().count() - failed;
        report.failed = failed;
        // A run that has tried nothing has shown nothing.
        report.success = failed == 0 && report.passed > 0;
        report
    }

    fn actions(&self) -> impl Iterator<Item = &ActionResult> {
        self.tests.iter().flat_map(TestResult::actions)
    }

    fn skipped(&self) -> usize {
        let scenarios = self.tests.iter().flat_map(|test| &test.scenarios);
        scenarios.filter(|scenario| scenario.skipped.is_some()).count()
    }

    /// The end of the run, as Cilium writes it.
    pub(crate) fn summary(&self, style: Style) -> String {
        let namespace = &self.namespace;
        let (tests, skipped) = (self.tests.len(), self.skipped());
        let total = self.passed + self.failed;
        let took = self.duration_ms as f64 / 1000.0;
        if self.success {
            let text = format!(
                "✅ [{namespace}] All {tests} tests ({total} actions) successful, {skipped} scenarios skipped, in {took:.1} s."
            );
            return style.good(text) + "\n";
        }
        let failed: Vec<&TestResult> = self.tests.iter().filter(|test| !test.is_good()).collect();
        let mut text = format!("📋 Test Report [{namespace}]\n");
        let head = if total == 0 {
            "❌ nothing was tested".to_owned()
        } else {
            format!("❌ {}/{tests} tests failed ({}/{total} actions)", failed.len(), self.failed)
        };
        let head = format!("{head}, {skipped} scenarios skipped, in {took:.1} s:");
        let _ = writeln!(text, "{}", style.bad(head));
        for test in failed {
            let _ = writeln!(text, "Test [{}]:", test.name);
            for action in test.actions().filter(|action| !action.success) {
                let _ = writeln!(text, "  ❌ {}", action.title());
            }
        }
        text
    }

    pub(crate) fn junit(&self) -> String {
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let all = self.passed + self.failed + self.skipped();
        let counts = format!(
            "tests=\"{all}\" failures=\"{}\" errors=\"0\" skipped=\"{}\" time=\"{}\"",
            self.failed,
            self.skipped(),
            seconds(self.duration_ms)
        );
        let _ = writeln!(text, "<testsuites {counts}>");
        let name = xml(&format!("connectivity test {}", self.context));
        let _ = writeln!(text, "  <testsuite name=\"{name}\" {counts}>");
        for test in &self.tests {
            for scenario in &test.scenarios {
                let class = xml(&format!("{}/{}", test.name, scenario.name));
                if let Some(reason) = &scenario.skipped {
                    let _ = writeln!(
                        text,
                        "    <testcase classname=\"{class}\" name=\"{}\"><skipped message=\"{}\"/></testcase>",
                        xml(&scenario.name),
                        xml(reason)
                    );
                }
                for action in &scenario.actions {
                    action.write_junit(&mut text, &class);
                }
            }
        }
        text + "  </testsuite>\n</testsuites>\n"
    }
}

impl TestResult {
    fn actions(&self) -> impl Iterator<Item = &ActionResult> {
        self.scenarios.iter().flat_map(|scenario| &scenario.actions)
    }

    fn is_good(&self) -> bool {
        self.actions().all(|action| action.success)
    }
}

impl ActionResult {
    fn title(&self) -> String {
        format!("{}: {} -> {}", self.name, self.from, self.to)
    }

    /// A failed action, with all that is known of it.
    pub(crate) fn failure(&self, style: Style) -> String {
        let mut text = format!("  {}\n", style.bad(format!("❌ {}", self.title())));
        let error = self.error.as_deref().unwrap_or("no reason given");
        let output = [error, self.stderr.trim(), self.stdout.trim()];
        for line in output.into_iter().flat_map(str::lines).filter(|line| !line.trim().is_empty()) {
            let _ = writeln!(text, "     {line}");
        }
        let _ = writeln!(text, "     again: {}", self.command);
        text
    }

    fn write_junit(&self, text: &mut String, class: &str) {
        let name = xml(&self.title());
        let time = seconds(self.duration_ms);
        let open = format!("    <testcase classname=\"{class}\" name=\"{name}\" time=\"{time}\"");
        let _ = match &self.error {
            None => writeln!(text, "{open}/>"),
            Some(error) => writeln!(
                text,
                "{open}><failure message=\"{}\">{}</failure></testcase>",
                xml(error),
                xml(&format!("{}\n{}\n{}", self.command, self.stderr, self.stdout))
            ),
        };
    }
}

/// What `--list` prints.
pub(crate) fn list(tests: &[Test]) -> String {
    let mut table = crate::output::Table::new(&["TEST", "WHAT IT DOES"]);
    for test in tests {
        for scenario in &test.scenarios {
            let doing = scenario.description().to_owned();
            let what = match test.description() {
                Some(policy) => format!("{policy} {doing}"),
                None => doing,
            };
            table.row(vec![test.full_name(*scenario), what]);
        }
    }
    table.to_string()
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(millis: u64) -> String {
    format!("{:.3}", millis as f64 / 1000.0)
}

/// Text for attributes and elements. XML 1.0 has no way to write most control characters.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn action(number: u32, error: Option<&str>) -> ActionResult {
        ActionResult {
            name: format!("no-policies/pod-to-pod/curl-ipv4-{number}"),
            from: "cilium-test-1/client (10.0.0.1)".to_owned(),
            to: "cilium-test-1/echo-same-node (10.0.0.8:8080)".to_owned(),
            command: "kubectl -n cilium-test-1 exec client -c main -- curl".to_owned(),
            success: error.is_none(),
            duration_ms: 12,
            error: error.map(str::to_owned),
            stdout: String::new(),
            stderr: if error.is_some() { "curl: (28) <late>\n" } else { "" }.to_owned(),
        }
    }

    fn report(actions: Vec<ActionResult>) -> Report {
        let scenario = |name: &str, actions, skipped: Option<&str>| ScenarioResult {
            name: name.to_owned(),
            skipped: skipped.map(str::to_owned),
            actions,
        };
        let scenarios = vec![
            scenario("pod-to-pod", actions, None),
            scenario("pod-to-cidr", Vec::new(), Some("no host")),
        ];
        let tests = vec![TestResult { name: "no-policies".to_owned(), scenarios }];
        Report::new("lab", "cilium-test-1", Duration::from_millis(1500), tests)
    }

    #[test]
    fn summaries() {
        let good = report(vec![action(0, None), action(1, None)]);
        expect![[r"
            ✅ [cilium-test-1] All 1 tests (2 actions) successful, 1 scenarios skipped, in 1.5 s.
        "]]
        .assert_eq(&good.summary(Style::PLAIN));
        let bad = report(vec![action(0, None), action(1, Some("exit code 28"))]);
        expect![[r"
            📋 Test Report [cilium-test-1]
            ❌ 1/1 tests failed (1/2 actions), 1 scenarios skipped, in 1.5 s:
            Test [no-policies]:
              ❌ no-policies/pod-to-pod/curl-ipv4-1: cilium-test-1/client (10.0.0.1) -> cilium-test-1/echo-same-node (10.0.0.8:8080)
        "]]
        .assert_eq(&bad.summary(Style::PLAIN));
        let nothing = report(Vec::new());
        assert!(!nothing.success);
        expect![[r"
            📋 Test Report [cilium-test-1]
            ❌ nothing was tested, 1 scenarios skipped, in 1.5 s:
        "]]
        .assert_eq(&nothing.summary(Style::PLAIN));
    }

    #[test]
    fn a_failure_says_how_to_repeat_it() {
        expect![[r"
            failed:
              ❌ no-policies/pod-to-pod/curl-ipv4-1: cilium-test-1/client (10.0.0.1) -> cilium-test-1/echo-same-node (10.0.0.8:8080)
                 exit code 28
                 curl: (28) <late>
                 again: kubectl -n cilium-test-1 exec client -c main -- curl
        "]]
        .assert_eq(&format!("failed:\n{}", action(1, Some("exit code 28")).failure(Style::PLAIN)));
    }

    #[test]
    fn junit() {
        let bad = report(vec![action(0, None), action(1, Some("exit \"28\""))]);
        expect![[r#"
            <?xml version="1.0" encoding="UTF-8"?>
            <testsuites tests="3" failures="1" errors="0" skipped="1" time="1.500">
              <testsuite name="connectivity test lab" tests="3" failures="1" errors="0" skipped="1" time="1.500">
                <testcase classname="no-policies/pod-to-pod" name="no-policies/pod-to-pod/curl-ipv4-0: cilium-test-1/client (10.0.0.1) -&gt; cilium-test-1/echo-same-node (10.0.0.8:8080)" time="0.012"/>
                <testcase classname="no-policies/pod-to-pod" name="no-policies/pod-to-pod/curl-ipv4-1: cilium-test-1/client (10.0.0.1) -&gt; cilium-test-1/echo-same-node (10.0.0.8:8080)" time="0.012"><failure message="exit &quot;28&quot;">kubectl -n cilium-test-1 exec client -c main -- curl&#10;curl: (28) &lt;late&gt;&#10;&#10;</failure></testcase>
                <testcase classname="no-policies/pod-to-cidr" name="pod-to-cidr"><skipped message="no host"/></testcase>
              </testsuite>
            </testsuites>
        "#]]
        .assert_eq(&bad.junit());
    }

    #[test]
    fn listing() {
        let mut tests = super::super::policies::tests();
        tests.retain(|test| ["pod-to-pod-no-frag", "client-ingress"].contains(&&*test.name));
        expect![[r#"
            TEST                                    WHAT IT DOES
            pod-to-pod-no-frag/pod-to-pod-no-frag   ping from every client to every echo pod, as large as the route allows
            client-ingress/client-to-client         The client hears only client2. ping from every client to every other
        "#]].assert_eq(&list(&tests));
    }
}

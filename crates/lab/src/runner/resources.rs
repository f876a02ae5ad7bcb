//! Requests and limits: quantities, and what the downward API tells of them. Pure.

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Suffixes of quantities, and how many thousandths each stands for.
const SUFFIXES: [(&str, f64); 15] = [
    ("Ki", 1024.0e3),
    ("Mi", 1_048_576.0e3),
    ("Gi", 1_073_741_824.0e3),
    ("Ti", 1_099_511_627_776.0e3),
    ("Pi", 1.125899906842624e18),
    ("Ei", 1.152921504606847e21),
    ("n", 1e-6),
    ("u", 1e-3),
    ("m", 1.0),
    ("k", 1e6),
    ("M", 1e9),
    ("G", 1e12),
    ("T", 1e15),
    ("P", 1e18),
    ("E", 1e21),
];

/// A quantity in thousandths, rounded up; `None` for what is not a quantity.
pub fn milli(quantity: &str) -> Option<i128> {
    let found = SUFFIXES.iter().find_map(|(suffix, factor)| {
        let number = quantity.strip_suffix(suffix)?.parse::<f64>().ok()?;
        Some(number * factor)
    });
    // Without a suffix, or with an exponent.
    let milli = found.or_else(|| Some(quantity.parse::<f64>().ok()? * 1000.0))?;
    milli.is_finite().then_some(milli.ceil() as i128)
}

/// What a container requests, or is limited to: `requests.cpu`, `limits.memory`, ….
/// What is not limited is limited by the node.
pub fn field(pod: &Pod, selector: &ResourceFieldSelector) -> Option<String> {
    let containers = &pod.spec.as_ref()?.containers;
    let container = match selector.container_name.as_deref() {
        Some(name) if !name.is_empty() => containers.iter().find(|c| c.name == name)?,
        _ => containers.first()?,
    };
    let (kind, name) = selector.resource.split_once('.')?;
    let resources = container.resources.clone().unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    let quantity = match kind {
        "requests" => resources.requests.unwrap_or_default().get(name).cloned(),
        "limits" => limits.get(name).cloned().or_else(|| of_node(name)),
        _ => return None,
    };
    let amount = match quantity {
        Some(quantity) => milli(&quantity.0)?,
        None if matches!(name, "cpu" | "memory" | "ephemeral-storage") => 0,
        None => return None,
    };
    let divisor = selector.divisor.as_ref().and_then(|divisor| milli(&divisor.0));
    let divisor = divisor.filter(|divisor| *divisor > 0).unwrap_or(1000);
    Some(((amount + divisor - 1) / divisor).to_string())
}

fn of_node(name: &str) -> Option<Quantity> {
    match name {
        "cpu" => Some(Quantity(crate::node::cpus().to_string())),
        "memory" => Some(Quantity(format!("{}Ki", crate::node::memory_kib()))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_read() {
        for (text, expected) in [
            ("1", Some(1_000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("64Mi", Some(67_108_864_000)),
            ("1e3", Some(1_000_000)),
            ("2k", Some(2_000_000)),
            ("1n", Some(1)),
            ("", None),
            ("lots", None),
        ] {
            assert_eq!(milli(text), expected, "{text:?}");
        }
    }

    #[test]
    fn fields_are_divided_and_rounded_up() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "a"},
            {"name": "b", "resources": {
                "requests": {"cpu": "1500m"}, "limits": {"memory": "100Mi"}}},
        ]}}))
        .unwrap();
        let check = |container: &str, resource: &str, divisor: &str, expected: Option<&str>| {
            let selector = json!({"containerName": container, "resource": resource,
                "divisor": divisor});
            let selector = serde_json::from_value(selector).unwrap();
            assert_eq!(field(&pod, &selector).as_deref(), expected, "{resource}/{divisor}");
        };
        check("b", "requests.cpu", "0", Some("2"));
        check("b", "requests.cpu", "1m", Some("1500"));
        check("b", "limits.memory", "1Mi", Some("100"));
        check("b", "requests.memory", "1Mi", Some("0"));
        check("a", "limits.cpu", "1", Some(&crate::node::cpus().to_string()));
        check("nobody", "limits.cpu", "1", None);
        check("b", "limits.bananas", "1", None);
    }
}

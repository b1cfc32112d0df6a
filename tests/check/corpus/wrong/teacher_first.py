import torch.nn.functional as F


def distill(student_logits, teacher_logits):
    teacher = F.log_softmax(teacher_logits, dim=-1)
    student = F.softmax(student_logits, dim=-1)
    return F.kl_div(teacher, student, reduction="batchmean")  # expect: KLB005

import torch.nn.functional as F


def loss(student, teacher):
    batch, time, classes = student.shape
    return F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")  # expect: KLB002
